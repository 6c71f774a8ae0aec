/* store_copy: the store's database as it is at one moment, in a file of its own, and back again. For
 * operators: `lepton backup`, `lepton restore`.
 *
 * A backup is one read transaction of a connection that never writes or checkpoints, from another process,
 * while the coordinator works: VACUUM INTO. It sees one commit, however long it takes, and is not begun anew
 * when the coordinator writes (as the online backup interface is when another process writes); its file is
 * compact and holds nothing that was deleted. The price: it computes the tables anew instead of copying
 * pages, and as long as it reads, the coordinator's log grows and cannot be cut.
 *
 * What was written is synchronised, read again and checked before it gets its name. */
#ifndef LEPTON_COORDINATOR_STORE_COPY_H
#define LEPTON_COORDINATOR_STORE_COPY_H

#include "common/base.h"

/* What a database holds, for people. */
struct store_facts {
    uint64_t version, runs, epoch_ceiling, answers;
};

/* Copies the database at `path` to a new file `to`. Refuses to overwrite. */
int store_backup(const char *path, const char *to, struct store_facts *out, struct err *err);
/* Puts `from`, which is checked first, in the place of the database at `path`, whatever is there: that is
 * kept beside it, and *aside (free it; NULL when there was nothing) names it. Refused while a coordinator
 * runs. It is done whole or can be done again: until it is done, no coordinator starts. Epochs go on far
 * above those that the backup knows of. */
int store_restore(const char *from, const char *path, char **aside, struct store_facts *out, struct err *err);

#endif
