/* Every field of every message, wrong in every way it can be: the frames are packed from the table itself,
 * good but for one detail, so that no field added later goes without its tests. */
#include "common/wire_schema.h"

#include <msgpack.h>

#include "tests/test.h"

enum fault {
    FAULT_NONE,
    FAULT_MISSING,
    FAULT_TWICE,
    FAULT_NIL,
    FAULT_BOOL,
    FAULT_INTEGER,
    FAULT_NEGATIVE,
    FAULT_FLOAT,
    FAULT_NAN,
    FAULT_STRING,
    FAULT_BINARY,
    FAULT_ARRAY,
    FAULT_MAP,
    FAULT_BELOW,
    FAULT_ABOVE,
    FAULT_NOT_UTF8,
    FAULT_NUL,
    FAULTS,
};

/* The one wrong place of the frame that is packed. */
static const struct wire_field *faulty;
static enum fault fault;

static void pack_text(msgpack_packer *p, uint64_t bytes, char with)
{
    char *text = xmalloc(bytes + 1);
    memset(text, 'a', bytes);
    if (bytes)
        text[bytes / 2] = with;
    msgpack_pack_str(p, bytes);
    msgpack_pack_str_body(p, text, bytes);
    free(text);
}

static void pack_record(msgpack_packer *p, const struct wire_record *r);

static void pack_array(msgpack_packer *p, const struct wire_field *f, uint64_t count)
{
    msgpack_pack_array(p, count);
    for (uint64_t i = 0; i < count; i++)
        pack_record(p, f->element);
}

static void pack_bytes(msgpack_packer *p, uint64_t bytes)
{
    char *data = xcalloc(1, bytes + 1);
    msgpack_pack_bin(p, bytes);
    msgpack_pack_bin_body(p, data, bytes);
    free(data);
}

static void pack_good(msgpack_packer *p, const struct wire_field *f)
{
    switch (f->kind) {
    case WIRE_KIND_UINT:
        msgpack_pack_uint64(p, f->max);
        return;
    case WIRE_KIND_FLOAT:
        msgpack_pack_double(p, f->float_max);
        return;
    case WIRE_KIND_BOOL:
        msgpack_pack_true(p);
        return;
    case WIRE_KIND_ARRAY:
        pack_array(p, f, 1);
        return;
    case WIRE_KIND_IDS:
        pack_bytes(p, 4);
        return;
    default:
        if (f->choices) {
            size_t n = strcspn(f->choices, "|");
            msgpack_pack_str(p, n);
            msgpack_pack_str_body(p, f->choices, n);
        } else {
            pack_text(p, f->min > 3 ? f->min : 3, 'b');
        }
    }
}

/* A value of the wrong kind. */
static void pack_kind(msgpack_packer *p, enum fault kind)
{
    switch (kind) {
    case FAULT_BOOL:
        msgpack_pack_false(p);
        return;
    case FAULT_INTEGER:
        msgpack_pack_int(p, 1);
        return;
    case FAULT_NEGATIVE:
        msgpack_pack_int(p, -1);
        return;
    case FAULT_FLOAT:
        msgpack_pack_double(p, 0.5);
        return;
    case FAULT_NAN:
        msgpack_pack_double(p, (double)NAN);
        return;
    case FAULT_STRING:
        pack_text(p, 1, '1');
        return;
    case FAULT_BINARY:
        msgpack_pack_bin(p, 1);
        msgpack_pack_bin_body(p, "1", 1);
        return;
    case FAULT_ARRAY:
        msgpack_pack_array(p, 0);
        return;
    case FAULT_MAP:
        msgpack_pack_map(p, 0);
        return;
    default:
        msgpack_pack_nil(p);
    }
}

static void pack_beyond(msgpack_packer *p, const struct wire_field *f, bool below)
{
    uint64_t beyond = below ? f->min - 1 : f->max + 1;
    if (f->kind == WIRE_KIND_UINT)
        msgpack_pack_uint64(p, beyond);
    else if (f->kind == WIRE_KIND_FLOAT)
        msgpack_pack_double(p, below ? (f->above_min ? f->float_min : nextafter(f->float_min, -INFINITY))
                                     : nextafter(f->float_max, INFINITY));
    else if (f->kind == WIRE_KIND_ARRAY)
        pack_array(p, f, beyond);
    else if (f->kind == WIRE_KIND_IDS)
        pack_bytes(p, 4 * beyond);
    else
        pack_text(p, beyond, 'b');
}

/* Can this field be wrong in this way? */
static bool applies(const struct wire_field *f, enum fault how)
{
    bool string = f->kind == WIRE_KIND_ID || f->kind == WIRE_KIND_STRING || f->kind == WIRE_KIND_TEXT;
    switch (how) {
    case FAULT_NONE:
        return false;
    case FAULT_MISSING:
        return f->required;
    case FAULT_BOOL:
        return f->kind != WIRE_KIND_BOOL;
    case FAULT_INTEGER:
        return f->kind != WIRE_KIND_UINT && f->kind != WIRE_KIND_FLOAT;
    case FAULT_NEGATIVE:
        return f->kind != WIRE_KIND_FLOAT || f->float_min > -1;
    case FAULT_FLOAT:
        return f->kind != WIRE_KIND_FLOAT;
    case FAULT_STRING:
        return !string;
    case FAULT_ARRAY:
        return f->kind != WIRE_KIND_ARRAY;
    case FAULT_BELOW:
        return f->kind == WIRE_KIND_FLOAT || (f->kind != WIRE_KIND_BOOL && f->min > 0);
    case FAULT_ABOVE:
        return f->kind == WIRE_KIND_FLOAT || (f->kind != WIRE_KIND_BOOL && f->max < UINT64_MAX);
    case FAULT_NOT_UTF8:
        return string;
    case FAULT_NUL:
        return string && f->kind != WIRE_KIND_TEXT;
    default:
        return true;
    }
}

static void pack_faulty(msgpack_packer *p, const struct wire_field *f)
{
    if (fault == FAULT_BELOW || fault == FAULT_ABOVE)
        pack_beyond(p, f, fault == FAULT_BELOW);
    else if (fault == FAULT_NOT_UTF8)
        pack_text(p, f->min > 3 ? f->min : 3, '\xFF');
    else if (fault == FAULT_NUL)
        pack_text(p, f->min > 3 ? f->min : 3, '\0');
    else if (fault == FAULT_TWICE)
        pack_good(p, f);
    else
        pack_kind(p, fault);
}

static void pack_record(msgpack_packer *p, const struct wire_record *r)
{
    uint32_t count = r->field_count;
    if (r->bare) {
        if (&r->fields[0] == faulty)
            pack_faulty(p, &r->fields[0]);
        else
            pack_good(p, &r->fields[0]);
        return;
    }
    if (r->listed) {
        uint32_t last = count - 1;
        for (uint32_t i = 0; fault == FAULT_MISSING && i < count; i++)
            if (&r->fields[i] == faulty)
                count = i; /* it and those behind it */
        bool more = fault == FAULT_TWICE && &r->fields[last] == faulty;
        msgpack_pack_array(p, count + more);
        for (uint32_t i = 0; i < count + more; i++)
            if (i < count && &r->fields[i] == faulty && !more)
                pack_faulty(p, &r->fields[i]);
            else
                pack_good(p, &r->fields[i < count ? i : last]);
        return;
    }
    for (uint32_t i = 0; i < r->field_count; i++)
        if (&r->fields[i] == faulty)
            count += fault == FAULT_TWICE ? 1 : fault == FAULT_MISSING ? -1u : 0;
    msgpack_pack_map(p, count);
    for (uint32_t i = 0; i < r->field_count; i++) {
        const struct wire_field *f = &r->fields[i];
        if (f == faulty && fault == FAULT_MISSING)
            continue;
        for (int times = f == faulty && fault == FAULT_TWICE ? 2 : 1; times > 0; times--) {
            msgpack_pack_str(p, strlen(f->name));
            msgpack_pack_str_body(p, f->name, strlen(f->name));
            if (f == faulty)
                pack_faulty(p, f);
            else
                pack_good(p, f);
        }
    }
}

static int decode_packed(const struct wire_record *message, struct err *err)
{
    struct wire_message m;
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    msgpack_pack_array(&p, 3);
    msgpack_pack_int(&p, WIRE_VERSION);
    msgpack_pack_int(&p, (int)message->type);
    pack_record(&p, message);
    int rc = wire_decode(&m, frame.data, frame.size, err);
    wire_release(&m);
    msgpack_sbuffer_destroy(&frame);
    return rc;
}

/* Every way for every field of `r`, a record within `message`. Returns how many frames were tried. */
static unsigned check_fields(const struct wire_record *message, const struct wire_record *r)
{
    unsigned tried = 0;
    for (uint32_t i = 0; i < r->field_count; i++) {
        const struct wire_field *f = &r->fields[i];
        CHECK(!r->listed || (!f->has_flag && (i == 0 || !f->required || r->fields[i - 1].required)));
        for (fault = FAULT_NONE; fault < FAULTS; fault++) {
            struct err err = {0};
            char place[100];
            if (!applies(f, fault) || (r->bare && (fault == FAULT_MISSING || fault == FAULT_TWICE)))
                continue;
            bool surplus = r->listed && fault == FAULT_TWICE; /* a list has no names: one value too many */
            if (surplus && i + 1 < r->field_count)
                continue;
            faulty = f;
            snprintf(place, sizeof(place), "%s: ", r->bare || surplus ? "[0]" : f->name);
            int rc = decode_packed(message, &err);
            faulty = NULL;
            tried++;
            bool named = strncmp(err.message, message->name, strlen(message->name)) == 0 &&
                         strstr(err.message, place) && err.code == 400;
            if (rc == 0 || !named) {
                printf("# %s.%s, fault %d: \"%s\" (%d)\n", r->name, f->name, (int)fault, err.message,
                       err.code);
                test_failures++;
            }
        }
        if (f->element)
            tried += check_fields(message, f->element);
    }
    return tried;
}

static void test_every_field_refuses_every_fault(void)
{
    size_t count;
    unsigned tried = 0;
    const struct wire_record *records = wire_records(&count);
    for (size_t i = 0; i < count; i++)
        tried += check_fields(&records[i], &records[i]);
    printf("# %u bad frames\n", tried);
    CHECK(tried > 1000);
}

/* Without a fault the same frames are good, with every field at its upper bound. */
static void test_the_frames_are_good_without_a_fault(void)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    for (size_t i = 0; i < count; i++) {
        struct err err = {0};
        int rc = decode_packed(&records[i], &err);
        if (rc != 0)
            printf("# %s\n", err.message);
        CHECK_INT(rc, 0);
    }
}

static void test_the_table_is_whole(void)
{
    size_t count;
    const struct wire_record *records = wire_records(&count);
    for (size_t i = 0; i < count; i++) {
        CHECK(wire_record_find((uint64_t)records[i].type) == &records[i]);
        CHECK(records[i].field_count <= 64);
        CHECK(records[i].direction && records[i].help);
        for (uint32_t k = 0; k < records[i].field_count; k++) {
            const struct wire_field *f = &records[i].fields[k];
            CHECK(f->help && f->help[0]);
            CHECK(f->offset < records[i].bytes);
            CHECK(f->required || f->kind != WIRE_KIND_UINT || f->has_flag ||
                  (f->standard >= f->min && f->standard <= f->max));
            for (uint32_t j = 0; j < k; j++)
                CHECK(strcmp(f->name, records[i].fields[j].name) != 0 &&
                      f->offset != records[i].fields[j].offset);
        }
    }
}

/* ---- memory that is not there ---- */

#if !defined(LEPTON_SANITIZE) && defined(__GLIBC__)
#define COUNTS_MEMORY 1
void *__libc_malloc(size_t bytes);
void __libc_free(void *memory);
void *malloc(size_t bytes);
void free(void *memory);

static long allocations, fail_at = -1; /* of this thread's decoder; -1: never fail */
static long balance;

void *malloc(size_t bytes)
{
    if (fail_at >= 0 && allocations++ == fail_at)
        return NULL;
    void *memory = __libc_malloc(bytes);
    balance += memory != NULL;
    return memory;
}

void free(void *memory)
{
    balance -= memory != NULL;
    __libc_free(memory);
}
#endif

static void test_a_failed_allocation_is_an_error(void)
{
#ifndef COUNTS_MEMORY
    SKIP("allocations are counted without sanitizers");
#else
    const struct wire_record *record = wire_record_find(WIRE_HELLO);
    msgpack_sbuffer frame;
    msgpack_packer p;
    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    msgpack_pack_array(&p, 3);
    msgpack_pack_int(&p, WIRE_VERSION);
    msgpack_pack_int(&p, WIRE_HELLO);
    pack_record(&p, record);
    int rc = -1;
    long n = 0;
    for (; rc != 0 && n < 1000; n++) {
        struct wire_message m;
        struct err err = {0};
        long before = balance;
        allocations = 0;
        fail_at = n;
        rc = wire_decode(&m, frame.data, frame.size, &err);
        fail_at = -1;
        if (rc != 0)
            CHECK(err.code == 500 && err.message[0] && m.memory == NULL);
        wire_release(&m);
        CHECK_INT(balance, before);
    }
    CHECK(n >= 2 && n < 1000); /* it failed some times, then ran out of allocations and succeeded */
    msgpack_sbuffer_destroy(&frame);
#endif
}

int main(void)
{
    TEST(test_the_frames_are_good_without_a_fault, "every field at its upper bound is accepted");
    TEST(test_every_field_refuses_every_fault, "every field refuses every fault, by its name");
    TEST(test_the_table_is_whole, "the table has no gaps and no doubles");
    TEST(test_a_failed_allocation_is_an_error, "a failed allocation is an error and leaks nothing");
    return test_result();
}
