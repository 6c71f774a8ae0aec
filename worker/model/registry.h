/* registry: a directory of models by name, each with hashes that were made when it was added.
 *
 *   MODELS/NAME/model.gguf     the model: a copy, or a symbolic link to where it lies (`--link`)
 *   MODELS/NAME/manifest.json  worker/model/manifest.h
 *
 * A model appears under its name whole or not at all: it is made in a directory with a leading dot, which no
 * name has, and renamed when everything is on disk. What a killed `add` left is removed by the next one.
 * Nothing is found outside of MODELS: names are letters, digits and "._-", MODELS/NAME must be a directory
 * and no link, and model.gguf is a link only where the manifest says so and says where to. */
#ifndef LEPTON_WORKER_MODEL_REGISTRY_H
#define LEPTON_WORKER_MODEL_REGISTRY_H

#include "worker/model/integrity.h"
#include "worker/model/model.h"

enum registry_verify {
    VERIFY_NEVER,
    VERIFY_REGISTERED, /* models that have a manifest */
    VERIFY_ALWAYS,     /* refuses a model that has none */
};
#define REGISTRY_VERIFY_CHOICES "always|registered|never"
enum registry_verify registry_verify_from_name(const char *name); /* one of the choices */

/* A model as a user names it. */
struct registry_model {
    char *path;                /* the file to open */
    char *name;                /* NULL: a plain path, not registered */
    struct manifest *manifest; /* NULL: not registered, or not looked at */
    struct integrity *integrity;
    _Atomic uint64_t checked_bytes; /* of tensors, at load */
};

/* The directory: `given`, else $LEPTON_HOME/models, else $XDG_DATA_HOME/lepton/models, else
 * ~/.local/share/lepton/models. To be freed; NULL when there is nothing to go by. */
char *registry_directory(const char *given, struct err *err);

/* The one way from a word to a model: a path that exists is that file (and registered when it is the
 * model.gguf of such a directory); any other word is a name in the registry `models` (NULL = the default).
 * With VERIFY_NEVER manifests are read only as far as a link needs it. Errors carry code 404 when there is
 * no such model. The result is to be released, also after an error. */
int registry_find(struct registry_model *out, const char *models, const char *word, enum registry_verify how,
                  struct err *err);
void registry_release(struct registry_model *m);
/* Opens it and checks sizes, header, metadata and tensor table where there is a manifest; `threads` will
 * check the tensors. */
int registry_open(struct gguf **out, struct registry_model *m, int threads, struct err *err);
/* The same for its tokenizer only: a Hugging Face directory needs no weights then. */
int registry_open_vocabulary(struct gguf **out, struct registry_model *m, struct err *err);
/* For model_open_checked: every tensor against its hashes as it is loaded. Borrows `m`; NULL .tensor when
 * there is nothing to check against. */
struct model_check registry_check(struct registry_model *m);

struct registry_addition {
    const char *path, *name; /* the GGUF file, and its name here */
    bool link;               /* it stays where it is */
    int threads;
    struct integrity_watch watch; /* bytes copied and hashed: the file once or (copied) twice */
};
/* Refused: a name that breaks the rule or is taken, and what could not be served: a file that is no GGUF, an
 * unknown architecture, missing tensors, no tokenizer. */
int registry_add(const char *models, const struct registry_addition *a, char digest[2 * MANIFEST_HASH + 1],
                 struct err *err);
/* Removes the model and, of a linked one, the link alone. Programs that use it keep their mapping. */
int registry_remove(const char *models, const char *name, struct err *err);

struct registry_entry {
    char *name;
    struct manifest *manifest; /* NULL when `problem` says why */
    char *problem;             /* NULL: nothing to be seen without reading the weights */
};
/* All models by name. A directory that is not there has none. */
int registry_list(const char *models, struct registry_entry **out, size_t *count, struct err *err);
void registry_list_free(struct registry_entry **list, size_t count);

#endif
