/* nccl_abi_check: compares worker/nccl_abi.h with the installed nccl.h when it is compiled; it is never run.
 * A newer NCCL may append to the configuration; what we know of it must lie where we believe. */
#include <nccl.h>

#include "worker/nccl_abi.h"

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours " differs from " #theirs)
#define SAME_FIELD(ours, theirs)                                                                           \
    _Static_assert(offsetof(struct nccl_abi_config, ours) == offsetof(ncclConfig_t, theirs) &&             \
                       sizeof(((struct nccl_abi_config *)0)->ours) == sizeof(((ncclConfig_t *)0)->theirs), \
                   "config field " #theirs)

SAME(NCCL_ABI_SUCCESS, ncclSuccess);
SAME(NCCL_ABI_CUDA_ERROR, ncclUnhandledCudaError);
SAME(NCCL_ABI_SYSTEM_ERROR, ncclSystemError);
SAME(NCCL_ABI_INTERNAL_ERROR, ncclInternalError);
SAME(NCCL_ABI_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(NCCL_ABI_INVALID_USAGE, ncclInvalidUsage);
SAME(NCCL_ABI_REMOTE_ERROR, ncclRemoteError);
SAME(NCCL_ABI_IN_PROGRESS, ncclInProgress);
SAME(NCCL_ABI_INT8, ncclInt8);
SAME(NCCL_ABI_UNSET, NCCL_CONFIG_UNDEF_INT);
_Static_assert(sizeof(struct nccl_abi_id) == sizeof(ncclUniqueId), "unique id");
_Static_assert(sizeof(enum nccl_abi_type) == sizeof(ncclDataType_t), "enums are passed as int");

#if NCCL_VERSION_CODE >= NCCL_ABI_VERSION
SAME_FIELD(size, size);
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
SAME_FIELD(cga_cluster_size, cgaClusterSize);
SAME_FIELD(min_ctas, minCTAs);
SAME_FIELD(max_ctas, maxCTAs);
SAME_FIELD(net_name, netName);
SAME_FIELD(split_share, splitShare);
SAME_FIELD(traffic_class, trafficClass);
SAME_FIELD(comm_name, commName);
SAME_FIELD(collnet_enable, collnetEnable);
SAME_FIELD(cta_policy, CTAPolicy);
SAME_FIELD(shrink_share, shrinkShare);
SAME_FIELD(nvls_ctas, nvlsCTAs);
SAME_FIELD(channels_per_net_peer, nChannelsPerNetPeer);
SAME_FIELD(nvlink_centric_sched, nvlinkCentricSched);
#endif
