/* OpenVINO's plugin, told that this machine's processor is Intel's.
 *
 * The plugin offers no device on the processors of others, though OpenVINO itself runs there. This stands before it and
 * hands it ONNX Runtime's table of functions with one of them changed. VENDOR is that function's place in the table,
 * FUNCTIONS how many there are; the plugin itself is plugin.so beside this file's library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const void *(*api)(uint32_t version);
    const char *(*version)(void);
} base;

static const base *given;
static const void *table[FUNCTIONS];

static uint32_t intel(const void *device) {
    (void)device;
    return 0x8086;
}

static const void *changed(uint32_t version) {
    const void *api = given->api(version);
    if (api == NULL) return NULL;
    memcpy(table, api, sizeof table);
    table[VENDOR] = (const void *)intel;
    return table;
}

static void *plugin(const char *function) {
    static void *library;
    Dl_info here;
    char path[4096];
    if (library == NULL && dladdr((void *)plugin, &here) != 0 && strlen(here.dli_fname) < sizeof path - 16) {
        strcpy(path, here.dli_fname);
        strcpy(strrchr(path, '/') + 1, "plugin.so");
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return library == NULL ? NULL : dlsym(library, function);
}

void *CreateEpFactories(const char *name, const base *api, const void *log, void **made, size_t most, size_t *count) {
    static base before;
    given = api;
    before.api = changed;
    before.version = api->version;
    void *(*create)(const char *, const base *, const void *, void **, size_t, size_t *) = plugin("CreateEpFactories");
    return create(name, &before, log, made, most, count);
}

void *ReleaseEpFactory(void *factory) {
    void *(*release)(void *) = plugin("ReleaseEpFactory");
    return release(factory);
}
