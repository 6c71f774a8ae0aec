/* keys: who may ask the gateway: API keys as people carry them in `Authorization: Bearer`.
 *
 * A key is 256 random bits behind "lep-"; its file holds names and SHA-256 hashes alone, one "NAME HASH" on
 * each line, mode 0600. A hash of 256 random bits needs no salt and no slow function: nobody can guess the
 * key. What a client presents is hashed and compared with every line in constant time. The file is read again
 * when it was changed: a line removed is a key revoked. */
#ifndef LEPTON_COORDINATOR_GATEWAY_KEYS_H
#define LEPTON_COORDINATOR_GATEWAY_KEYS_H

#include "common/base.h"

#define KEYS_NAME_BYTES 65 /* a name, terminated: 1..64 characters of [A-Za-z0-9._-], no leading dot */
#define KEYS_TEXT_BYTES 64 /* a key, terminated */

/* Adds a line to the file, which is made when missing, and writes the key to out: it is not kept anywhere.
 * Refuses a name that is there already. */
int keys_add(const char *path, const char *name, char out[KEYS_TEXT_BYTES], struct err *err);

struct keys;
/* Refused: a file that others can read, and lines that are none. */
int keys_open(struct keys **out, const char *path, struct err *err);
void keys_close(struct keys **k);
/* Whose key it is; false: nobody's. Any thread. While a changed file cannot be read nobody's is (default
 * deny). */
bool keys_find(struct keys *k, const char *key, size_t bytes, char name[KEYS_NAME_BYTES]);
/* How many keys there are. Any thread. */
uint32_t keys_count(struct keys *k);

#endif
