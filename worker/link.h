/* link: the leader's side of the wire: a thread that owns the DEALER socket to the coordinator, tokenises
 * prompts and detokenises what the step thread draws (design, decision 10). It knows nothing of MPI or of how
 * steps are made: it talks to the step thread through the mailbox alone.
 *
 * States:  checking --canary--> connecting --hello--> greeting --welcome--> serving(epoch) --lease over-->
 * fenced --hello--> ... Liveness and progress apart. Before every hello a canary, one token of an internal
 * request, must come through every rank: who cannot serve says no hello. While nothing runs a ping does the
 * same without computing. Heartbeats, which this thread sends whatever the step loops do, carry for how long
 * no rank has moved and which one is stuck in what.
 *
 * The lease runs from when the heartbeat that the coordinator answered was sent, on the monotonic clock: the
 * group fences itself (drops all work, says nothing more under that epoch) before the coordinator gives its
 * work away. */
#ifndef LEPTON_WORKER_LINK_H
#define LEPTON_WORKER_LINK_H

#include "common/curve.h"
#include "common/wire.h"
#include "worker/infer/mailbox.h"
#include "worker/model/tokenizer.h"
#include "worker/watchdog.h"

struct link_options {
    const char *endpoint;
    const char *server_key;      /* the coordinator's public key, Z85 */
    const struct curve_key *key; /* our own */
    struct wire_hello
        hello; /* group, model, numeric class, capacity, stages; epoch and incarnation are the link's */
    const struct tokenizer *tokenizer;
    struct mailbox *mailbox;
    struct watchdog *watchdog; /* what the step loops do; NULL: nobody watches them (a mock group) */
    uint32_t max_live;         /* requests given to the step thread at once, waiting ones included */
};

/* Everything in *options is borrowed until link_stop. */
struct link;
int link_start(struct link **out, const struct link_options *options, struct err *err);
/* Asks for a drain (a signal came): what runs is finished, nothing new is taken. Safe from a signal handler.
 */
void link_drain(struct link *l);
/* Ends the thread after the step thread has left: says goodbye to the coordinator. */
void link_stop(struct link **l);

#endif
