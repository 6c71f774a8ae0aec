/* clones: compiles a hot loop once per vector width and picks one when the program starts. All clones give
 * the same bits: the order of the additions is written in the source, and -ffp-contract=off keeps
 * multiplication and addition apart. Off under sanitizers (the resolvers run before their set-up), where the
 * compiler has no target_clones, and where -DLEPTON_NO_CLONES asks for the portable code alone. */
#ifndef LEPTON_KERNELS_CPU_CLONES_H
#define LEPTON_KERNELS_CPU_CLONES_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(LEPTON_SANITIZE) && \
    !defined(LEPTON_NO_CLONES)
#define CPU_HAS_CLONES 1
#define CPU_CLONES     __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define CPU_CLONES
#endif

#endif
