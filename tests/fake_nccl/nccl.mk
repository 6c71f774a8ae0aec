# The fake libnccl and the program that runs comm_nccl's checks over it; tests/integration/test_comm_nccl.sh uses both.
FAKE_NCCL := $(B)/tests/libfake_nccl.so
NCCL_RANKS := $(B)/tests/comm/nccl_ranks

$(FAKE_NCCL): $(B)/tests/fake_nccl/fake_nccl.o
	$(Q)$(CC) $(LDFLAGS_ALL) -shared -o $@ $^
$(B)/tests/fake_nccl/%.o: CFLAGS_ALL += -fvisibility=hidden -Wno-missing-prototypes

$(NCCL_RANKS): $(B)/tests/comm/nccl_ranks.o $(B)/tests/comm/check_comm.o $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)

# Where nccl.h is installed, our own declarations of its interface are compared with it when this is compiled.
NCCL_H := $(firstword $(wildcard /usr/local/cuda/include/nccl.h /usr/include/nccl.h))
NCCL_ABI_CHECK := $(if $(NCCL_H),$(B)/tests/comm/nccl_abi_check.o)
$(B)/tests/comm/nccl_abi_check.o: CPPFLAGS += -isystem /usr/local/cuda/include

test-programs: $(FAKE_NCCL) $(NCCL_RANKS) $(NCCL_ABI_CHECK)
