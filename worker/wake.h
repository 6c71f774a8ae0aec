/* wake: how an idle group sleeps. A rank that waits inside MPI spins; so while there is nothing to do, every
 * other rank sleeps in poll() on a TCP connection to the leader, which writes one byte when work arrives
 * (design, decision 10).
 *
 * The leader listens, the address list and a random token travel over MPI, every rank connects and proves the
 * token, and the listener is closed again. Wake bytes travel
 * one way, the watchdog's reports the other. The end of the connection means
 * the leader is gone. */
#ifndef LEPTON_WORKER_WAKE_H
#define LEPTON_WORKER_WAKE_H

#include "common/base.h"

#define WAKE_MAX_ADDRESSES 16

/* Where the leader listens; plain bytes, broadcast to the ranks. */
struct wake_info {
    uint8_t token[16];
    uint16_t port; /* host order */
    uint16_t count;
    struct {
        uint16_t family; /* AF_INET, AF_INET6 */
        uint8_t bytes[16];
        uint32_t scope;
    } address[WAKE_MAX_ADDRESSES];
};

struct wake;

/* Leader: listens on a free port and describes it. */
int wake_listen(struct wake **out, struct wake_info *info, struct err *err);
/* Leader: waits until `peers` ranks have connected. */
int wake_accept(struct wake *w, int peers, uint64_t timeout_ms, struct err *err);
/* Other ranks: connects to the first address that answers with the token's proof. */
int wake_connect(struct wake **out, const struct wake_info *info, uint64_t timeout_ms, struct err *err);
void wake_close(struct wake **w);

/* The connections, for reports to the leader (watchdog): the leader's are one for each rank, the others have
 * the one to the leader. Returns how many. */
int wake_connections(const struct wake *w, const int **fds);

/* Leader: wakes every rank. -1 when one of them is gone. */
int wake_all(struct wake *w, struct err *err);
/* Other ranks: sleeps until woken; each wake_all ends one wake_wait, also one that comes later. -1: the
 * leader is gone. */
int wake_wait(struct wake *w, struct err *err);

#endif
