/* hangup: a hang-up is told to libzmq only when it reads.
 *
 * libzmq 4.3.4 stops reading a connection whose messages nobody takes (ZMQ_RCVHWM). When the peer hangs up
 * meanwhile, the kernel says so whether it was asked or not, libzmq gives the descriptor up, and as soon as
 * the messages are taken it goes on with what it had read already. If a PING is among that, it answers, and
 * its assertion `!_io_error` ends the process: any peer that may connect can do that, by libzmq's heartbeats,
 * a flood and a reset. No option keeps it from it, and never to stop reading (ZMQ_RCVHWM 0) would let any
 * peer fill the memory, also where no message of it ever comes out (a second connection under one routing
 * id).
 *
 * So this file defines epoll_ctl and epoll_wait, in front of the C library's, for the program that links it:
 * - a descriptor of which nothing is asked leaves the kernel's set until something is;
 * - a hang-up or an error becomes what was asked: can be read, or else can be written. Whoever then reads or
 *   writes meets it; an event of reading never comes twice in one.
 * libzmq is thereby never called about a connection that it does not read, which is the one way to its error.
 * What others of the process ask of epoll is served alike; nobody else may watch a descriptor through two
 * sets at once. */
#ifndef LEPTON_COORDINATOR_HANGUP_H
#define LEPTON_COORDINATOR_HANGUP_H

#include "common/base.h"

/* Has anybody used the functions here? Once libzmq has a context, it has: or is not protected. */
bool hangup_in_force(void);

#endif
