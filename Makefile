# Lepton. `make help` lists the targets. Everything is built below build/$(VARIANT)/.
VARIANT ?= release
B := build/$(VARIANT)

CC ?= gcc
PKG_CONFIG ?= pkg-config
NVCC ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))

# msgpack-c 6 renamed its pkg-config file.
MSGPACK := $(shell $(PKG_CONFIG) --exists msgpack 2>/dev/null && echo msgpack || echo msgpack-c)
PACKAGES := libczmq libzmq $(MSGPACK) libconfig jansson libsodium libutf8proc libxxhash sqlite3 libmicrohttpd
MPI_PACKAGE := $(shell $(PKG_CONFIG) --exists ompi-c 2>/dev/null && echo ompi-c || echo ompi)

# -ffp-contract=off: the reference kernels give the same bits with and without fused multiply-add units.
# -Wno-format-truncation: messages are bounded and cut on purpose; gcc's verdict changes with the variant.
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wno-format-truncation
ifeq ($(VARIANT),fuzz)
WARN := # clang's; gcc's are what the code is held to
endif
CPPFLAGS += -I. -D_GNU_SOURCE
CFLAGS_release := -O2 -g
CFLAGS_debug := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DLEPTON_SANITIZE
CFLAGS_fuzz := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -DLEPTON_SANITIZE
CFLAGS_tsan := -O1 -g -fsanitize=thread -fno-omit-frame-pointer -DLEPTON_SANITIZE
CFLAGS_ALL = -std=gnu11 $(WARN) -fPIC -pthread -ffp-contract=off $(CFLAGS_$(VARIANT)) $(CFLAGS)
LDFLAGS_ALL = -pthread $(filter -fsanitize%,$(CFLAGS_$(VARIANT))) $(LDFLAGS)

LIB_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PACKAGES) 2>/dev/null)
LIB_LIBS := $(shell $(PKG_CONFIG) --libs $(PACKAGES) 2>/dev/null) -lm -ldl
MPI_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(MPI_PACKAGE) 2>/dev/null)
MPI_LIBS := $(shell $(PKG_CONFIG) --libs $(MPI_PACKAGE) 2>/dev/null)

# Say what is missing before a compiler does.
ifneq ($(filter-out help clean format demo test gpu-check gpu-bench,$(or $(MAKECMDGOALS),all)),)
MISSING := $(shell for p in $(PACKAGES) $(MPI_PACKAGE); do $(PKG_CONFIG) --exists $$p 2>/dev/null || echo $$p; done)
ifneq ($(MISSING),)
$(error pkg-config does not find: $(MISSING). tools/deps.sh installs what Lepton needs)
endif
endif

# `make V=1` shows whole commands instead of one line for each file.
ifndef V
Q := @
say = @printf '  %-5s %s\n' '$(1)' '$(2)'
endif

# ---- sources: one static library a room; programs are thin mains over them --------------------------------------
COMMON_C := $(wildcard common/*.c)
KERNELS_C := $(wildcard kernels/*.c kernels/cpu/*.c)
# comm_mpi.c and main.c alone know MPI; the command line links the rest of worker/ without it.
MPI_C := $(wildcard worker/comm_mpi.c)
WORKER_C := $(filter-out worker/main.c $(MPI_C),$(wildcard worker/*.c worker/model/*.c worker/model/*/*.c \
    worker/infer/*.c worker/mock/*.c))
COORDINATOR_C := $(filter-out coordinator/main.c,$(wildcard coordinator/*.c coordinator/*/*.c))
TOOLS_C := $(wildcard tools/*.c tools/*/*.c)
UNIT_C := $(sort $(shell find tests/unit -name 'test_*.c' 2>/dev/null))
FUZZ_C := $(wildcard tests/fuzz/fuzz_*.c)

obj = $(patsubst %.c,$(B)/%.o,$(1))
LIBCOMMON := $(B)/libcommon.a
LIBKERNELS := $(B)/libkernels.a
LIBWORKER := $(B)/libworker.a
LIBCOORDINATOR := $(B)/libcoordinator.a

PROGRAMS := $(B)/lepton-coordinator $(B)/lepton-worker $(B)/lepton
PLUGIN := $(if $(NVCC),$(B)/lepton_cuda.so)
UNIT := $(patsubst tests/%.c,$(B)/tests/%,$(UNIT_C))

.DEFAULT_GOAL := all
.PHONY: all
all: $(PROGRAMS) $(PLUGIN) ## Build the three programs, and the GPU plug-in where nvcc is found

$(LIBCOMMON): $(call obj,$(COMMON_C))
$(LIBKERNELS): $(call obj,$(KERNELS_C))
$(LIBWORKER): $(call obj,$(WORKER_C))
$(LIBCOORDINATOR): $(call obj,$(COORDINATOR_C))
$(B)/lib%.a:
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(B)/lepton-coordinator: $(B)/coordinator/main.o $(LIBCOORDINATOR) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)
$(B)/lepton-worker: $(B)/worker/main.o $(call obj,$(MPI_C)) $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(MPI_LIBS) $(LIB_LIBS)
$(B)/lepton: $(call obj,$(TOOLS_C)) $(B)/tools/demo/embedded.o $(LIBCOORDINATOR) $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)

$(B)/worker/main.o $(B)/worker/comm_mpi.o $(B)/tests/mpi/%.o: LIB_CFLAGS += $(MPI_CFLAGS)
# The kernels are where the time goes: let the compiler vectorise their loops over independent sums.
$(B)/kernels/%.o: CFLAGS_release := -O3 -g
# No parser, and unrolled so far that instrumenting them takes a compiler minutes each.
$(B)/kernels/cpu/%.o: CFLAGS_fuzz := -O1 -g -DLEPTON_SANITIZE

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) $(LIB_CFLAGS) -MMD -MP -c -o $@ $<

# The demo model inside the command line.
$(B)/tools/demo/embedded.o: tools/demo/embedded.S tools/demo/lepton-demo.gguf
	@mkdir -p $(@D)
	$(call say,AS,$<)
	$(Q)$(CC) -c -o $@ $<

-include kernels/cuda.mk
-include tests/fake_nccl/nccl.mk

# A model of 110M parameters, so that the whole takes a minute; docs/benchmarks.md has the larger ones.
BENCH_MODEL ?= $(B)/bench-110m.gguf
$(B)/bench-110m.gguf: | $(B)/lepton
	$(B)/lepton synth --layers 12 --dim 768 --ffn 2048 --heads 12 --kv-heads 12 $@
.PHONY: bench
bench: all $(BENCH_MODEL) ## Measure the engine and the kernels beside the limits of this machine (BENCH_MODEL=path)
	$(B)/lepton bench engine $(BENCH_MODEL) -p 512 -n 64 -b 1,8,32
	$(B)/lepton bench kernels --repeats 3

.PHONY: demo
demo: ## Install what is missing, build, and show four prompts streaming through two groups of two stages
	tools/deps.sh
	$(MAKE) --no-print-directory all
	$(B)/lepton demo

# ---- tests --------------------------------------------------------------------------------------------------------
$(B)/tests/unit/%: $(B)/tests/unit/%.o $(LIBCOORDINATOR) $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)

# Programs that mpirun starts; scripts of tests/integration run them.
MPI_TEST_C := $(wildcard tests/mpi/*.c)
MPI_TESTS := $(patsubst tests/%.c,$(B)/tests/%,$(MPI_TEST_C))
$(B)/tests/mpi/%: $(B)/tests/mpi/%.o $(B)/tests/comm/check_comm.o $(call obj,$(MPI_C)) $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(MPI_LIBS) $(LIB_LIBS)

# Small programs that scripts of tests/integration drive.
DRIVERS := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/drivers/*.c))
$(B)/tests/drivers/%: $(B)/tests/drivers/%.o $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)

# Libraries that fault tests put in front of libc.
PRELOADS := $(patsubst tests/%.c,$(B)/tests/%.so,$(wildcard tests/faults/*.c))
$(B)/tests/faults/%.so: tests/faults/%.c Makefile
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(CPPFLAGS) -std=gnu11 $(WARN) -O2 -fPIC -shared -o $@ $< -ldl

# Programs with failpoints: what has any is compiled again, the rest is the same.
FAILPOINT_C := common/failpoint.c $(shell grep -lw FAILPOINT common/*.c coordinator/*.c)
FAILPOINT_O := $(patsubst %.c,$(B)/failpoints/%.o,$(FAILPOINT_C))
$(B)/failpoints/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,CC,$< with failpoints)
	$(Q)$(CC) $(CPPFLAGS) -DLEPTON_FAILPOINTS $(CFLAGS_ALL) $(LIB_CFLAGS) -MMD -MP -c -o $@ $<
FAILING := $(B)/tests/faults/lepton-coordinator $(B)/tests/faults/lepton
$(B)/tests/faults/lepton-coordinator: $(B)/coordinator/main.o $(FAILPOINT_O) $(LIBCOORDINATOR) $(LIBCOMMON)
$(B)/tests/faults/lepton: $(call obj,$(TOOLS_C)) $(B)/tools/demo/embedded.o $(FAILPOINT_O) $(LIBCOORDINATOR) $(LIBWORKER) \
    $(LIBKERNELS) $(LIBCOMMON)
$(FAILING):
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIB_LIBS)

HOUSE := $(wildcard tests/house/*.sh)
INTEGRATION := $(sort $(wildcard tests/integration/test_*.sh tests/integration/test_*.py))
FAULTS := $(sort $(wildcard tests/faults/test_*.py))
FAULTS_MOCK := $(filter-out %/test_groups.py %/test_kills.py %/test_run.py,$(FAULTS))
# Those that take a minute at most, in every run of the tests; the others with `make faults` alone.
FAULTS_SHORT := $(patsubst %,tests/faults/test_%.py,any_moment audit gateway hold peers remembered resume run store store_disk)

# What ThreadSanitizer cannot see into.
ifeq ($(VARIANT),tsan)
export TSAN_OPTIONS ?= suppressions=$(CURDIR)/tests/tsan.supp
endif

.PHONY: test check house unit test-programs debug tsan faults
test-programs: $(UNIT) $(MPI_TESTS) $(DRIVERS) $(PRELOADS) $(FAILING)
test: ## Install what is missing, build, and run every test: house rules, units, integration
	@tools/deps.sh --test
	@$(MAKE) --no-print-directory check
check: all test-programs ## The same, with what is installed
	@LEPTON_BUILD=$(CURDIR)/$(B) tests/run $(HOUSE) $(UNIT) $(INTEGRATION) $(FAULTS_SHORT)
house: ## Check includes, headers, formatting and scripts alone
	@tests/run $(HOUSE)
unit: test-programs ## Run the unit tests alone
	@tests/run $(UNIT)
# Open MPI is not built for ThreadSanitizer: there the tests of the coordinator and of mock groups run.
FAULTS_LONG := $(if $(filter tsan,$(VARIANT)),$(FAULTS_MOCK),$(FAULTS) tests/integration/test_faults.py)
faults: all $(DRIVERS) $(PRELOADS) $(FAILING) ## Inject every fault into the real programs (10-20 minutes); VARIANT=debug|tsan
	@LEPTON_BUILD=$(CURDIR)/$(B) tests/faults/run $(FAULTS_LONG)
debug: ## Build with ASan and UBSan (build/debug); `make unit VARIANT=debug` runs the units there
	$(MAKE) VARIANT=debug all test-programs
tsan: ## Build with TSan (build/tsan); `make unit VARIANT=tsan` runs the units there
	$(MAKE) VARIANT=tsan all test-programs

# Fuzzers: libFuzzer through clang, with ASan and UBSan. FUZZ_SECONDS for each target.
FUZZ_CC ?= clang
FUZZ_SECONDS ?= 60
.PHONY: fuzz fuzz-programs
FUZZ := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(FUZZ_C))
fuzz-programs:
	$(MAKE) --no-print-directory VARIANT=fuzz CC='$(FUZZ_CC)' NVCC= $(FUZZ)
$(FUZZ): build/fuzz/%: build/fuzz/tests/fuzz/%.o $(LIBCOORDINATOR) $(LIBWORKER) $(LIBKERNELS) $(LIBCOMMON)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -fsanitize=fuzzer -o $@ $^ $(LIB_LIBS)
fuzz: fuzz-programs ## Fuzz every parser for FUZZ_SECONDS each (default 60)
	tests/fuzz/run $(FUZZ_SECONDS) $(FUZZ)

# The formatting test wants version 14, which may not be the system's first.
CLANG_FORMAT ?= $(firstword $(shell command -v clang-format-14 2>/dev/null) clang-format)
.PHONY: format clean help
format: ## Format every C, C++ and CUDA file in place
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs $(CLANG_FORMAT) -i
clean: ## Remove build/
	rm -rf build
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
	@echo "variables: VARIANT=release|debug|tsan  FUZZ_SECONDS=N  NVCC=path  V=1"

-include $(shell find build/$(VARIANT) -name '*.d' 2>/dev/null)
.SECONDARY:
