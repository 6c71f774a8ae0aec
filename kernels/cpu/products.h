/* products: several products of one x as one job of the team. Their panels stand behind one another in the
 * range that the team divides, so that its members meet once and not once for each product. */
#ifndef LEPTON_KERNELS_CPU_PRODUCTS_H
#define LEPTON_KERNELS_CPU_PRODUCTS_H

#include "kernels/cpu/panel.h"

struct product {
    struct panel_layout layout;
    const char *packed;
    const float *bias; /* [N], or NULL */
    float *out;        /* [T, N] */
    int64_t N, first;  /* first: the range's index of its first panels */
};

struct products {
    struct product of[MATMUL_OUTPUTS];
    int count;
    int64_t total; /* indices of the range, each `side` panels of one product */
};

/* Weights are packed to panels of one type. */
struct products products_of(const struct matmul_output *outputs, int count, int side);

/* The part of [begin, end) of the range that is product i's, counted from its own first index; false when
 * there is none. */
bool products_part(const struct products *p, int i, int64_t begin, int64_t end, int64_t *from, int64_t *to);

#endif
