#include "kernels/cpu/panel.h"

#include <string.h>

#include "kernels/cpu/fast.h"
#include "kernels/dtype.h"
#include "kernels/half.h"

static const struct panel_type TYPES[DTYPE_COUNT] = {
    [DTYPE_Q8_0] = {.pieces = 8,
                    .pieces_at = 2,
                    .scale_apart = true,
                    .in_place = true,
                    .flip = 0x80808080u,
                    .parts = 1,
                    .offset = 128},
    [DTYPE_Q4_0] = {.pieces = 4, .pieces_at = 2, .scale_apart = true, .parts = 1, .offset = 8},
    [DTYPE_Q4_1] = {.pieces = 5, .parts = 1, .has_addends = true},
    [DTYPE_Q5_0] =
        {.pieces = 5, .pieces_at = 2, .scale_apart = true, .fifth_bits = true, .parts = 1, .offset = 16},
    [DTYPE_Q5_1] = {.pieces = 6, .fifth_bits = true, .parts = 1, .has_addends = true},
    [DTYPE_Q2_K] = {.pieces = 21, .parts = 2, .has_addends = true},
    [DTYPE_Q3_K] = {.pieces = 27,
                    .scale_apart = true,
                    .scale_at = offsetof(struct block_q3_k, scale),
                    .parts = 2,
                    .offset = 4},
    [DTYPE_Q4_K] = {.pieces = 36, .parts = 1, .has_addends = true},
    [DTYPE_Q5_K] = {.pieces = 44, .parts = 1, .has_addends = true},
    [DTYPE_Q6_K] = {.pieces = 52,
                    .scale_apart = true,
                    .scale_at = offsetof(struct block_q6_k, scale),
                    .parts = 2,
                    .offset = 32},
};
#define MOST_PIECES 52

const struct panel_type *panel_type(enum dtype type)
{
    return TYPES[type].pieces > 0 ? &TYPES[type] : NULL;
}

bool panel_supported(enum dtype type)
{
    return TYPES[type].pieces > 0 || panel_is_float(type);
}

struct panel_layout panel_layout(enum dtype type, int64_t rows, int64_t columns)
{
    const struct dtype_info *info = dtype_info(type);
    const struct panel_type *cut = &TYPES[type];
    struct panel_layout l = {.blocks = columns / info->block_elements,
                             .panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS};
    if (panel_is_float(type)) {
        l.quant_bytes = PANEL_ROWS * (size_t)info->block_bytes;
        l.panel_bytes = l.group_bytes = (size_t)round_up_u64((uint64_t)columns, PANEL_FLOATS) * l.quant_bytes;
        l.group = l.blocks;
        return l;
    }
    l.quant_bytes = (size_t)cut->pieces * PANEL_PIECE;
    l.scale_bytes = cut->scale_apart ? PANEL_ROWS * sizeof(uint16_t) : 0;
    l.group = cut->scale_apart && !cut->in_place ? 2 : l.blocks;
    l.group_bytes = round_up_u64((uint64_t)l.group * (l.quant_bytes + l.scale_bytes), 64);
    l.panel_bytes = (size_t)(l.blocks / l.group) * l.group_bytes +
                    round_up_u64((uint64_t)(l.blocks % l.group) * (l.quant_bytes + l.scale_bytes), 64);
    return l;
}

static uint32_t *pieces_of(const struct panel_layout *l, char *panel, int64_t block)
{
    return (uint32_t *)(void *)(panel + panel_pieces_at(l, block));
}

static uint16_t *scales_of(const struct panel_layout *l, char *panel, int64_t block)
{
    return (uint16_t *)(void *)(panel + panel_scales_at(l, block));
}

/* ---- plain types */

/* Elements of K that are moved together: sixteen rows of them stay in the first-level cache. */
#define FLOAT_RUN 64

/* Where element k of a row stands, in elements. */
static size_t float_place(enum dtype type, int64_t k, int row)
{
    return type == DTYPE_BF16 ? (size_t)((k / 2 * PANEL_ROWS + row) * 2 + k % 2)
                              : (size_t)(k * PANEL_ROWS + row);
}

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
                    memcpy(panel + float_place(rows->dtype, k, r) * bytes, row + (size_t)k * bytes, bytes);
            }
    }
}

/* ---- blocks */

/* Moves bit 4j + i to 8i + j: a bit's number, five bits of its own, is turned by two places, and one place is
 * a perfect unshuffle (Warren, Hacker's Delight, 7-2). */
static inline uint32_t swap_bits(uint32_t x, uint32_t mask, int by)
{
    uint32_t t = (x ^ x >> by) & mask;
    return x ^ t ^ t << by;
}

static inline uint32_t regroup(uint32_t x)
{
    for (int twice = 0; twice < 2; twice++) {
        x = swap_bits(x, 0x22222222u, 1);
        x = swap_bits(x, 0x0C0C0C0Cu, 2);
        x = swap_bits(x, 0x00F000F0u, 4);
        x = swap_bits(x, 0x0000FF00u, 8);
    }
    return x;
}

static inline uint32_t regroup_back(uint32_t x)
{
    for (int twice = 0; twice < 2; twice++) {
        x = swap_bits(x, 0x0000FF00u, 8);
        x = swap_bits(x, 0x00F000F0u, 4);
        x = swap_bits(x, 0x0C0C0C0Cu, 2);
        x = swap_bits(x, 0x22222222u, 1);
    }
    return x;
}

/* Pieces of a row that are turned together: sixteen rows of them stay in the first-level cache. */
#define RUN_PIECES 128

struct pack {
    const struct panel_type *cut;
    size_t block_bytes, row_bytes;
};

/* out[d * 16 + r] = row r's number d. */
static void turn(const void *from, size_t stride, int rows, int64_t count, uint32_t *out)
{
#ifdef CPU_HAS_FAST
    if (__builtin_cpu_supports("avx512f")) {
        panel_turn_avx512(from, stride, rows, count, out);
        return;
    }
#endif
    for (int64_t d = 0; d < count; d++)
        for (int r = 0; r < PANEL_ROWS; r++) {
            out[d * PANEL_ROWS + r] = 0;
            if (r < rows)
                memcpy(&out[d * PANEL_ROWS + r], (const char *)from + (size_t)r * stride + 4 * (size_t)d, 4);
        }
}

/* The pieces of `blocks` blocks of a row side by side, without the scales between them. */
static inline __attribute__((always_inline)) void strip(const struct pack *p, const char *block,
                                                        int64_t blocks, uint32_t *out, const int pieces)
{
    for (int64_t b = 0; b < blocks; b++, block += p->block_bytes, out += pieces) {
        memcpy(out, block + p->cut->pieces_at, (size_t)pieces * 4);
        for (int d = 0; d < pieces; d++)
            out[d] ^= p->cut->flip;
    }
}

static void strip_run(const struct pack *p, const char *block, int64_t blocks, uint32_t *out)
{
    switch (p->cut->pieces) { /* constants, so that the copies become moves */
    case 4:
        strip(p, block, blocks, out, 4);
        break;
    case 8:
        strip(p, block, blocks, out, 8);
        break;
    default:
        strip(p, block, blocks, out, p->cut->pieces);
    }
}

/* Blocks [first, first + blocks) of a panel of `rows` rows; the file has the first at `from`. */
static void pack_run(const struct pack *p, const char *from, int rows, const struct panel_layout *l,
                     char *panel, int64_t first, int64_t blocks)
{
    int64_t count = blocks * p->cut->pieces;
    bool side_by_side = l->group >= l->blocks; /* the pieces of all blocks */
    uint32_t turned[RUN_PIECES * PANEL_ROWS], *pieces = side_by_side ? pieces_of(l, panel, first) : turned;
    if (p->cut->scale_apart) {
        uint32_t line[PANEL_ROWS][RUN_PIECES];
        for (int r = 0; r < rows; r++) {
            const char *row = from + (size_t)r * p->row_bytes;
            strip_run(p, row, blocks, line[r]);
            for (int64_t b = 0; b < blocks; b++)
                memcpy(scales_of(l, panel, first + b) + r,
                       row + (size_t)b * p->block_bytes + p->cut->scale_at, 2);
        }
        turn(line, sizeof(line[0]), rows, count, pieces);
    } else {
        turn(from, p->row_bytes, rows, count, pieces);
    }
    if (p->cut->fifth_bits)
        for (int64_t b = 0; b < blocks; b++) {
            uint32_t *high = pieces + ((b + 1) * p->cut->pieces - 5) * PANEL_ROWS;
            for (int r = 0; r < PANEL_ROWS; r++)
                high[r] = regroup(high[r]);
        }
    for (int64_t b = 0; b < blocks && !side_by_side; b++)
        memcpy(pieces_of(l, panel, first + b), turned + b * p->cut->pieces * PANEL_ROWS, l->quant_bytes);
}

void panel_pack(const struct tensor *rows, void *packed, int64_t begin, int64_t end)
{
    struct panel_layout l = panel_layout(rows->dtype, rows->dim[0], rows->dim[1]);
    if (panel_is_float(rows->dtype)) {
        pack_floats(rows, &l, packed, begin, end);
        return;
    }
    struct pack pack = {.cut = &TYPES[rows->dtype], .block_bytes = dtype_info(rows->dtype)->block_bytes};
    pack.row_bytes = pack.block_bytes * (size_t)l.blocks;
    ASSERT(pack.cut->pieces > 0);
    int64_t run = RUN_PIECES / pack.cut->pieces;
    for (int64_t p = begin; p < end; p++) {
        char *panel = (char *)packed + (size_t)p * l.panel_bytes;
        const char *from = (const char *)rows->data + (size_t)p * PANEL_ROWS * pack.row_bytes;
        int64_t left = rows->dim[0] - p * PANEL_ROWS;
        int here = left < PANEL_ROWS ? (int)left : PANEL_ROWS;
        if (here < PANEL_ROWS)
            memset(panel, 0, l.panel_bytes);
        for (int64_t b = 0; b < l.blocks; b += run)
            pack_run(&pack, from + (size_t)b * pack.block_bytes, here, &l, panel, b,
                     l.blocks - b < run ? l.blocks - b : run);
    }
}

/* The block as the file has it. */
static void read_block(const struct panel_type *cut, const uint32_t *pieces, const uint16_t *scales, int row,
                       char *block)
{
    for (int d = 0; d < cut->pieces; d++) {
        uint32_t piece = pieces[d * PANEL_ROWS + row] ^ cut->flip;
        if (cut->fifth_bits && d == cut->pieces - 5)
            piece = regroup_back(piece);
        memcpy(block + cut->pieces_at + 4 * d, &piece, 4);
    }
    if (cut->scale_apart)
        memcpy(block + cut->scale_at, &scales[row], 2);
}

void panel_row_floats(const struct weight *w, int64_t n, int64_t k, int64_t count, float *out)
{
    enum dtype type = w->stored.dtype;
    const struct dtype_info *info = dtype_info(type);
    struct panel_layout l = panel_layout(type, w->stored.dim[0], w->stored.dim[1]);
    char *panel = (char *)w->packed + (size_t)(n / PANEL_ROWS) * l.panel_bytes;
    int row = (int)(n % PANEL_ROWS);
    if (panel_is_float(type)) {
        for (int64_t i = 0; i < count; i++)
            dtype_to_f32(type, panel + float_place(type, k + i, row) * info->block_bytes, out + i, 1);
        return;
    }
    for (int64_t b = k / info->block_elements; b < (k + count) / info->block_elements; b++) {
        _Alignas(8) char block[4 * MOST_PIECES + 4];
        read_block(&TYPES[type], pieces_of(&l, panel, b), scales_of(&l, panel, b), row, block);
        dtype_to_f32(type, block, out, info->block_elements);
        out += info->block_elements;
    }
}

/* Blocks [block, block + count) of a panel as the file has its sixteen rows, `stride` bytes apart. */
static void read_rows(enum dtype type, const struct panel_layout *l, const char *panel, int64_t block,
                      int64_t count, char *rows, size_t stride)
{
    const struct panel_type *cut = &TYPES[type];
    size_t block_bytes = dtype_info(type)->block_bytes;
    for (int64_t b = 0; b < count; b++) {
        const char *pieces = panel + panel_pieces_at(l, block + b);
        const uint16_t *scales = scales_of(l, (char *)panel, block + b);
        uint32_t turned[PANEL_ROWS][16];
        for (int first = 0; first < cut->pieces; first += 16) {
            int here = cut->pieces - first < 16 ? cut->pieces - first : 16;
            turn(pieces + first * PANEL_PIECE, PANEL_PIECE, here, 16, &turned[0][0]);
            for (int r = 0; r < PANEL_ROWS; r++) {
                char *at = rows + (size_t)r * stride + (size_t)b * block_bytes;
                for (int d = 0; d < here; d++)
                    turned[r][d] ^= cut->flip;
                if (cut->fifth_bits)
                    turned[r][cut->pieces - 5] = regroup_back(turned[r][cut->pieces - 5]);
                memcpy(at + cut->pieces_at + 4 * first, turned[r], 4 * (size_t)here);
                if (cut->scale_apart && first == 0)
                    memcpy(at + cut->scale_at, &scales[r], 2);
            }
        }
    }
}

/* Elements [k, k + count) of a panel of BF16 pairs as [count][16] floats. */
static void part_pairs(const uint16_t *panel, int64_t k, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++)
        for (int r = 0; r < PANEL_ROWS; r++)
            out[i * PANEL_ROWS + r] = widen_bf16(panel[float_place(DTYPE_BF16, k + i, r)]);
}

/* Elements that are turned at a time. */
#define READ_RUN 256

void panel_floats(const struct weight *w, int64_t p, int64_t k, int64_t count, float *out)
{
    enum dtype type = w->stored.dtype;
    const struct dtype_info *info = dtype_info(type);
    struct panel_layout l = panel_layout(type, w->stored.dim[0], w->stored.dim[1]);
    const char *panel = (const char *)w->packed + (size_t)p * l.panel_bytes;
    for (int64_t first = 0; first < count; first += READ_RUN) {
        int64_t here = count - first < READ_RUN ? count - first : READ_RUN;
        if (panel_is_float(type)) {
            float columns[READ_RUN * PANEL_ROWS], rows[PANEL_ROWS][16];
            if (type == DTYPE_BF16)
                part_pairs((const uint16_t *)(const void *)panel, k + first, here, columns);
            else
                dtype_to_f32(type, panel + (size_t)(k + first) * l.quant_bytes, columns,
                             (uint64_t)here * PANEL_ROWS);
            for (int64_t c = 0; c < here; c += 16) {
                int some = here - c < 16 ? (int)(here - c) : 16;
                turn(columns + c * PANEL_ROWS, PANEL_PIECE, some, 16, (uint32_t *)(void *)rows);
                for (int r = 0; r < PANEL_ROWS; r++)
                    memcpy(out + r * count + first + c, rows[r], (size_t)some * sizeof(float));
            }
            continue;
        }
        char rows[PANEL_ROWS]
                 [READ_RUN / QUANT_BLOCK * sizeof(struct block_q8_0)]; /* the largest for each element */
        read_rows(type, &l, panel, (k + first) / info->block_elements, here / info->block_elements,
                  &rows[0][0], sizeof(rows[0]));
        for (int r = 0; r < PANEL_ROWS; r++)
            dtype_to_f32(type, rows[r], out + r * count + first, (uint64_t)here);
    }
}
