#include "worker/model/model_file.h"

#include <sys/stat.h>

#include "worker/model/hf.h"

static bool is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int model_file_open(struct gguf **out, const char *path, struct err *err)
{
    return is_directory(path) ? hf_open(out, path, HF_MODEL, err) : gguf_open(out, path, err);
}

int model_file_open_vocabulary(struct gguf **out, const char *path, struct err *err)
{
    return is_directory(path) ? hf_open(out, path, HF_VOCABULARY, err) : gguf_open(out, path, err);
}
