/* nccl_abi: the part of NCCL's binary interface that comm_nccl calls, declared by us so that the worker
 * builds on nodes without NCCL; the library is opened at run time. Source: NCCL 2.28 user guide, "NCCL API".
 *
 * The layouts are NCCL's stable ABI: numbers of results and types never change, the configuration carries its
 * own size and version, and a newer library reads an older one by these. tests/comm/nccl_abi_check.c compares
 * every number with nccl.h where that is installed. */
#ifndef LEPTON_WORKER_NCCL_ABI_H
#define LEPTON_WORKER_NCCL_ABI_H

#include <limits.h>
#include <stddef.h>

#define NCCL_ABI_ID_BYTES 128
#define NCCL_ABI_UNSET    INT_MIN
#define NCCL_ABI_MAGIC    0xcafebeefu
#define NCCL_ABI_VERSION  22809
#define NCCL_ABI_VERSION_LEAST \
    21800 /* the first whose non-blocking communicators finalize and abort as told */

enum nccl_abi_result {
    NCCL_ABI_SUCCESS = 0,
    NCCL_ABI_CUDA_ERROR = 1,
    NCCL_ABI_SYSTEM_ERROR = 2,
    NCCL_ABI_INTERNAL_ERROR = 3,
    NCCL_ABI_INVALID_ARGUMENT = 4,
    NCCL_ABI_INVALID_USAGE = 5,
    NCCL_ABI_REMOTE_ERROR = 6,
    NCCL_ABI_IN_PROGRESS = 7,
};

enum nccl_abi_type {
    NCCL_ABI_INT8 = 0,
};

struct nccl_abi_id {
    char internal[NCCL_ABI_ID_BYTES];
};

struct nccl_abi_config {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
    int cga_cluster_size;
    int min_ctas;
    int max_ctas;
    const char *net_name;
    int split_share;
    int traffic_class;
    const char *comm_name;
    int collnet_enable;
    int cta_policy;
    int shrink_share;
    int nvls_ctas;
    int channels_per_net_peer;
    int nvlink_centric_sched;
};

struct ncclComm; /* opaque, NCCL's */

/* One entry a function, named as the symbol without "nccl". */
struct nccl_abi {
    int (*GetVersion)(int *version);
    int (*GetUniqueId)(struct nccl_abi_id *id);
    int (*CommInitRankConfig)(struct ncclComm **comm, int ranks, struct nccl_abi_id id, int rank,
                              struct nccl_abi_config *config);
    int (*CommFinalize)(struct ncclComm *comm);
    int (*CommDestroy)(struct ncclComm *comm);
    int (*CommAbort)(struct ncclComm *comm);
    int (*CommGetAsyncError)(struct ncclComm *comm, int *state);
    const char *(*GetErrorString)(int result);
    const char *(*GetLastError)(struct ncclComm *comm);
    int (*GroupStart)(void);
    int (*GroupEnd)(void);
    int (*Send)(const void *data, size_t count, int type, int peer, struct ncclComm *comm, void *stream);
    int (*Recv)(void *data, size_t count, int type, int peer, struct ncclComm *comm, void *stream);
    int (*AllGather)(const void *in, void *out, size_t count, int type, struct ncclComm *comm, void *stream);
    int (*Broadcast)(const void *in, void *out, size_t count, int type, int root, struct ncclComm *comm,
                     void *stream);
};

#endif
