/* connections: who stands behind each open connection of the router's socket, who has just left, and whether
 * there is room for more. libzmq tells a ROUTER nothing of this; its monitor does, by descriptor, and every
 * message says which descriptor it came through.
 *
 * A descriptor's number is used again, so the order counts: before a message of a connection that is not
 * known is believed, all events are read; those of the number's earlier users came before it.
 *
 * Room: from `most` connections on, nobody new gets in until some have left. On TCP the kernel drops what
 * knocks (a filter on the listening socket), and who knocks tries again by itself; what was already at the
 * door, and whoever comes over ipc, is shut out after it was accepted. Nothing spins, nobody who is in
 * notices. */
#ifndef LEPTON_COORDINATOR_CONNECTIONS_H
#define LEPTON_COORDINATOR_CONNECTIONS_H

#include "common/curve.h"
#include "coordinator/peer.h"

struct connections;
/* Watches `socket` (before zmq_bind). Failed handshakes go to `zap` to be counted and logged. */
int connections_open(struct connections **out, void *context, void *socket, struct curve_zap *zap,
                     uint32_t most, struct err *err);
/* After the socket's monitor was ended and the socket closed. */
void connections_close(struct connections **c);

/* A socket that can be read when something happened. */
void *connections_events(struct connections *c);
/* Takes what happened. */
void connections_read(struct connections *c);
/* A message of `peer` came through descriptor `fd` (-1: unknown, it is not tracked). */
void connections_seen(struct connections *c, int fd, const struct peer *peer);
/* A peer that was seen and has left; false when there is none (any more). Its last messages may still be in
 * the socket: `drained` says that none was, and without it some time is given. */
bool connections_left(struct connections *c, bool drained, struct peer *out);
bool connections_waiting(const struct connections *c); /* somebody has left and was not told yet */

uint32_t connections_count(const struct connections *c);

#endif
