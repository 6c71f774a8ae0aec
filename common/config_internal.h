/* config_internal: what the three files of config share, and nobody else includes: finding an option, storing
 * a checked value, and the words of a refusal. */
#ifndef LEPTON_COMMON_CONFIG_INTERNAL_H
#define LEPTON_COMMON_CONFIG_INTERNAL_H

#include "common/config.h"

/* Messages quote what was found up to this many bytes, so that one cannot flood a terminal or a log. */
#define CONFIG_FOUND_BYTES 80

/* `name` in the spelling of files ("max_sequences"); NULL when the table has no such option. */
const struct config_option *config_find(const struct config_table *table, const char *name,
                                        size_t name_bytes);
/* The name on the command line, without the dashes: "max-sequences". Returns `out`. */
const char *config_flag(const struct config_option *option, char out[64]);
/* "an integer from 1 to 4096": what the option accepts. Returns `out`. */
const char *config_expected(const struct config_option *option, char *out, size_t bytes);
/* A number as people write it, without a useless fraction. Returns `out`. */
const char *config_number(enum config_kind kind, double v, char out[40]);
/* `text` in quotes, cut and with control characters replaced, for a message. Returns `out`. */
const char *config_found(const char *text, char out[CONFIG_FOUND_BYTES]);

/* Each stores a value into the option's member after its checks; on a refusal *err says
 * "where: expected ..., found ...", where `found` is text for people. The option must be of that kind. */
int config_set_bool(const struct config_option *option, void *settings, bool v);
int config_set_int(const struct config_option *option, void *settings, int64_t v, const char *where,
                   const char *found, struct err *err);
int config_set_float(const struct config_option *option, void *settings, double v, const char *where,
                     const char *found, struct err *err);
int config_set_string(const struct config_option *option, void *settings, const char *v, const char *where,
                      const char *found, struct err *err);
/* Adds to the option's strings. */
void config_add_string(const struct config_option *option, void *settings, const char *v, bool from_file);
/* "where: expected ..., found ..."; returns -1. */
int config_refuse(const struct config_option *option, const char *where, const char *found, struct err *err);

#endif
