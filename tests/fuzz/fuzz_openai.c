/* libFuzzer over bodies of the HTTP gateway. The first byte chooses the route. What is taken must be a
 * generate that the wire can carry; what is refused must say why in valid UTF-8, as JSON that reads back. */
#include <string.h>

#include "coordinator/gateway/openai.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int render(void *context, struct wire_str model, const json_t *messages, struct openai_prompt *out,
                  struct err *err)
{
    (void)context;
    if (wire_str_is(model, "none"))
        return err_set_code(err, 404, "no template");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *content = json_object_get(json_array_get(messages, i), "content");
        ASSERT(json_is_string(content));
        buffer_append(&out->text, json_string_value(content), json_string_length(content));
    }
    out->stop = "</s>";
    return 0;
}

static void check_request(struct openai_request *r)
{
    struct wire_message m, back;
    struct buffer frame = {0};
    struct err err;
    wire_init(&m, WIRE_GENERATE);
    m.generate = r->ask;
    m.generate.request = wire_string("r");
    wire_encode(&m, &frame); /* a value out of its bounds is an assertion there */
    if (frame.size <= WIRE_MAX_FRAME) {
        ASSERT(wire_decode(&back, frame.data, frame.size, &err) == 0);
        ASSERT(back.generate.prompt.size == r->ask.prompt.size);
        wire_release(&back);
    }
    buffer_release(&frame);
}

static void check_error(const struct openai_error *e)
{
    struct buffer out = {0};
    ASSERT(e->err.code >= 400 && e->err.code < 600 && e->err.message[0]);
    openai_error_write(e, &out);
    json_t *back = json_loadb((const char *)out.data, out.size, JSON_REJECT_DUPLICATES, NULL);
    ASSERT(back);
    json_decref(back);
    buffer_release(&out);
}

/* The same text as an answer. */
static void check_answer(const struct openai_request *r)
{
    struct openai_answer a;
    struct buffer out = {0};
    struct wire_token t = {.text = r->ask.prompt, .piece = r->ask.prompt, .logprob = -1};
    struct wire_done d = {.finish_reason = {"stop", 4}};
    openai_answer_init(&a, r, "r", 1);
    openai_answer_token(&a, &t, &out);
    for (d.choice = 0; d.choice < a.n; d.choice++)
        openai_answer_done(&a, &d, &out);
    openai_answer_end(&a, &out);
    if (!a.stream) {
        json_t *back =
            json_loadb((const char *)out.data, out.size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        ASSERT(back);
        json_decref(back);
    }
    openai_answer_release(&a);
    buffer_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct openai_chat chat = {.render = render};
    struct openai_request r;
    struct openai_error e = {.code = NULL};
    if (size == 0)
        return 0;
    if (openai_read(&r, data[0] & 1 ? OPENAI_CHAT : OPENAI_COMPLETIONS, data + 1, size - 1, &chat, &e) == 0) {
        check_request(&r);
        check_answer(&r);
    } else {
        check_error(&e);
    }
    openai_release(&r);
    return 0;
}
