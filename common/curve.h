/* curve: who may talk to a socket. CURVE keys in files, and the ZAP handler that binds each key to one
 * identity.
 *
 * A key pair is two files, in the certificate format of CZMQ (zcert): NAME.key holds both halves, mode 0600,
 * and is refused when others can read it; NAME.pub holds the public half. Both carry metadata: `name` (the
 * identity) and `role` (coordinator | worker | client). A coordinator trusts the .pub files of one directory;
 * that directory is read again when it changed, so a key is revoked by removing or replacing its file: new
 * handshakes are refused, and curve_zap_allows says so of connections that are open.
 *
 * The handler answers ZAP (RFC 27): a known key gets the user id "role:name" and a number of the key itself,
 * which every message received then carries (zmq_msg_gets "User-Id" and CURVE_KEY_PROPERTY); anything else is
 * refused with 400 and logged.
 *
 * While a context has no handler, libzmq asks nobody and lets every key in, without a user id. So:
 * curve_zap_start before the first bind; drop every message that has no user id; at the end close the server
 * sockets, then curve_zap_stop, then end the context. */
#ifndef LEPTON_COMMON_CURVE_H
#define LEPTON_COMMON_CURVE_H

#include "common/base.h"

#define CURVE_ZAP_DOMAIN   "lepton"
#define CURVE_KEY_PROPERTY "X-Lepton-Key" /* 16 hexadecimal digits */

enum curve_role { CURVE_COORDINATOR, CURVE_WORKER, CURVE_CLIENT };
const char *curve_role_name(enum curve_role role);
bool curve_role_from_name(const char *name, enum curve_role *out);

/* 1..64 characters of [A-Za-z0-9._-], no leading dot. */
bool curve_name_valid(const char *name);

struct curve_key {
    char name[65];
    enum curve_role role;
    char public_key[41]; /* Z85 */
    char secret_key[41]; /* Z85; empty when only the public half was loaded */
};

/* Makes a pair and writes DIR/NAME.key (0600) and DIR/NAME.pub (0644); DIR is made (0700) when missing.
 * Refuses to overwrite. */
int curve_generate(struct curve_key *out, const char *directory, const char *name, enum curve_role role,
                   struct err *err);
/* Loads NAME.key (refused unless a regular file of ours without group/other access) or, with `public_only`,
 * NAME.pub (refused when others may write it, or when it holds a secret key). */
int curve_load(struct curve_key *out, const char *path, bool public_only, struct err *err);
void curve_wipe(struct curve_key *key);

/* Sets a socket up as CURVE server or client. `socket` is a libzmq socket. */
int curve_server(void *socket, const struct curve_key *own, struct err *err);
int curve_client(void *socket, const struct curve_key *own, const char *server_public_key, struct err *err);

/* The ZAP handler: a thread on inproc://zeromq.zap.01 of `context` (a libzmq context). One per context. In
 * the directory NAME.pub must hold the key of NAME; files that do not are left out with a warning. The
 * directory is refused when others may write it. */
struct curve_zap;
int curve_zap_start(struct curve_zap **out, void *context, const char *authorized_directory, struct err *err);
void curve_zap_stop(struct curve_zap **zap);
/* An event of the monitor of a server socket: counts and logs the peers whom libzmq refuses before ZAP is
 * asked: another mechanism, another protocol, a handshake not finished in time. `peer` is for the log. Any
 * thread. */
void curve_zap_note(struct curve_zap *zap, unsigned event, unsigned value, const char *peer);
/* Handshakes refused so far; those that were noted included. Any thread. */
uint64_t curve_zap_refused(struct curve_zap *zap);
/* Is the key, by its role, name and number, authorized still? What was changed CURVE_STALE_MS ago counts. Any
 * thread. */
#define CURVE_STALE_MS 200
bool curve_zap_allows(struct curve_zap *zap, enum curve_role role, const char *name, uint64_t key);

/* Splits a user id "role:name" into its parts; false when it is none. */
bool curve_user_parse(const char *user_id, enum curve_role *role, const char **name);

#endif
