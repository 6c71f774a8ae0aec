#include "kernels/cpu/panel.h"

#include <string.h>

#include "kernels/dtype.h"

bool panel_supported(enum dtype type)
{
    return type == DTYPE_Q8_0 || type == DTYPE_Q4_0 || panel_is_float(type);
}

struct panel_layout panel_layout(enum dtype type, int64_t rows, int64_t columns)
{
    if (panel_is_float(type)) {
        size_t bytes = PANEL_ROWS * (size_t)dtype_info(type)->block_bytes;
        return (struct panel_layout){.blocks = columns,
                                     .quant_bytes = bytes,
                                     .panel_bytes = round_up_u64((uint64_t)columns * bytes, 64),
                                     .panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS};
    }
    struct panel_layout l = {.blocks = columns / PANEL_BLOCK, .panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS};
    l.quant_bytes = PANEL_ROWS * PANEL_BLOCK / (type == DTYPE_Q4_0 ? 2 : 1);
    l.scale_bytes = PANEL_ROWS * sizeof(uint16_t);
    l.panel_bytes = round_up_u64((uint64_t)l.blocks * (l.quant_bytes + l.scale_bytes), 64);
    return l;
}

/* Where the scales of a panel begin: behind all its quants. */
static uint16_t *panel_scales(const struct panel_layout *l, char *panel)
{
    return (uint16_t *)(void *)(panel + (size_t)l->blocks * l->quant_bytes);
}

/* The 32 numbers of a block, unsigned, and its scale. */
static uint16_t read_block(enum dtype type, const void *block, uint8_t q[PANEL_BLOCK])
{
    if (type == DTYPE_Q8_0) {
        const struct block_q8_0 *b = block;
        for (int i = 0; i < PANEL_BLOCK; i++)
            q[i] = (uint8_t)(b->q[i] + 128);
        return b->scale;
    }
    const struct block_q4_0 *b = block;
    for (int i = 0; i < PANEL_BLOCK / 2; i++) {
        q[i] = b->low[i] & 15;
        q[i + PANEL_BLOCK / 2] = b->low[i] >> 4;
    }
    return b->scale;
}

static void write_block(enum dtype type, char *quants, int row, const uint8_t q[PANEL_BLOCK])
{
    for (int j = 0; j < PANEL_BLOCK / 4; j++) {
        char *at = quants + (type == DTYPE_Q4_0 ? j % 4 : j) * 64 + row * 4;
        for (int i = 0; i < 4; i++)
            if (type == DTYPE_Q8_0)
                at[i] = (char)q[4 * j + i];
            else
                at[i] = (char)(j < 4 ? q[4 * j + i] : (uint8_t)at[i] | q[4 * j + i] << 4);
    }
}

/* Elements of K that are moved together: sixteen rows of them stay in the first-level cache. */
#define FLOAT_RUN 64

static void pack_floats(const struct tensor *rows, const struct panel_layout *l, void *packed, int64_t begin,
                        int64_t end)
{
    size_t bytes = dtype_info(rows->dtype)->block_bytes;
    for (int64_t p = begin; p < end; p++) {
        char *panel = (char *)packed + (size_t)p * l->panel_bytes;
        memset(panel, 0, l->panel_bytes);
        for (int64_t first = 0; first < l->blocks; first += FLOAT_RUN)
            for (int r = 0; r < PANEL_ROWS && p * PANEL_ROWS + r < rows->dim[0]; r++) {
                const char *row =
                    (const char *)rows->data + (size_t)((p * PANEL_ROWS + r) * l->blocks) * bytes;
                for (int64_t k = first; k < l->blocks && k < first + FLOAT_RUN; k++)
                    memcpy(panel + (size_t)(k * PANEL_ROWS + r) * bytes, row + (size_t)k * bytes, bytes);
            }
    }
}

void panel_pack(const struct tensor *rows, void *packed, int64_t begin, int64_t end)
{
    enum dtype type = rows->dtype;
    if (panel_is_float(type)) {
        struct panel_layout floats = panel_layout(type, rows->dim[0], rows->dim[1]);
        pack_floats(rows, &floats, packed, begin, end);
        return;
    }
    struct panel_layout l = panel_layout(type, rows->dim[0], rows->dim[1]);
    size_t block_bytes = dtype_info(type)->block_bytes, row_bytes = block_bytes * (size_t)l.blocks;
    for (int64_t p = begin; p < end; p++) {
        char *panel = (char *)packed + (size_t)p * l.panel_bytes;
        memset(panel, 0, l.panel_bytes);
        for (int r = 0; r < PANEL_ROWS && p * PANEL_ROWS + r < rows->dim[0]; r++) {
            const char *row = (const char *)rows->data + (size_t)(p * PANEL_ROWS + r) * row_bytes;
            for (int64_t b = 0; b < l.blocks; b++) {
                uint8_t q[PANEL_BLOCK];
                panel_scales(&l, panel)[b * PANEL_ROWS + r] =
                    read_block(type, row + (size_t)b * block_bytes, q);
                write_block(type, panel + (size_t)b * l.quant_bytes, r, q);
            }
        }
    }
}

void panel_row_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out)
{
    enum dtype type = w->stored.dtype;
    struct panel_layout l = panel_layout(type, w->stored.dim[0], w->stored.dim[1]);
    char *panel = (char *)w->packed + (size_t)(n / PANEL_ROWS) * l.panel_bytes;
    int row = (int)(n % PANEL_ROWS);
    if (panel_is_float(type)) {
        size_t bytes = dtype_info(type)->block_bytes;
        for (int64_t i = 0; i < count; i++)
            dtype_to_f32(type, panel + (size_t)((k + i) * PANEL_ROWS + row) * bytes, out + i, 1);
        return;
    }
    for (int64_t b = k / PANEL_BLOCK; b < (k + count) / PANEL_BLOCK; b++) {
        const uint8_t *quants = (const uint8_t *)panel + (size_t)b * l.quant_bytes + row * 4;
        float scale = f16_to_f32(panel_scales(&l, panel)[b * PANEL_ROWS + row]);
        for (int e = 0; e < PANEL_BLOCK; e++) {
            int q = type == DTYPE_Q8_0 ? quants[e / 4 * 64 + e % 4] - 128
                                       : (quants[e / 4 % 4 * 64 + e % 4] >> (e < 16 ? 0 : 4) & 15) - 8;
            *out++ = scale * (float)q;
        }
    }
}
