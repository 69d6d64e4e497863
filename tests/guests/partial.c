/*
 * A job of which checkpoints leave something out.
 *
 *   partial DIR                     memory: a cache, memory that is not to be dumped, pages of its own over a file, shared
 *                                   memory, a file that it writes through shared memory
 *   partial DIR --tree [--pipe] [--shared]
 *                                   processes: a root, its child that talks with a grandchild, and another child
 *
 * Memory: each part says where it is (say.cache, say.secret, say.file, say.shared, as START-END). In each step a page of every
 * part is compared with what was last written there, and another one is written. Where DIR/lost.NAME exists, the part must have
 * been lost by a restore: it must read as zero (the file's part: as the file; what is written to a file through shared memory: as
 * anything else than zero, since that file was left alone), is filled anew, and the file is removed.
 *
 * Processes: the child (say.child) counts the steps and gives the verdict: it and the grandchild (say.grandchild) pass a number on
 * to each other through pipes of their own. With --pipe the child tells the root, too, and with --shared it has memory with it.
 * The other child (say.other) waits.
 */
#include "guest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES 256

struct part {
    const char *name;
    char *at;
    uint64_t seed[PAGES];
};

static struct part parts[] = {{.name = "cache"}, {.name = "secret"}, {.name = "file"}, {.name = "shared"}, {.name = "written"}};
static uint64_t rng = 7;

/* What the file holds below what was written over it. */
static uint64_t seed_in_file(const struct part *part, size_t page) { return strcmp(part->name, "file") ? 0 : 1000 + page; }

static void overwrite(struct part *part, size_t page) {
    part->seed[page] = random_next(&rng) | 1;
    page_fill(part->at + page * PAGE, part->seed[page]);
}

static void check_page(const struct part *part, size_t page, uint64_t seed) {
    long differs = page_difference(part->at + page * PAGE, seed);
    CHECK(differs < 0, "%s: page %zu differs at byte %ld after %lu steps", part->name, page, differs, guest_steps);
}

static void say_range(const struct part *part) {
    char name[64], range[64];
    snprintf(name, sizeof name, "say.%s", part->name);
    snprintf(range, sizeof range, "%#lx-%#lx", (unsigned long)part->at, (unsigned long)part->at + PAGES * PAGE);
    guest_link(name, range);
}

static void set_up_memory(void) {
    char path[PATH_MAX], page[PAGE];
    int file = MUST(open(guest_path(path, "mapped"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    for (size_t i = 0; i < PAGES; i++) {
        page_fill(page, 1000 + i);
        CHECK(write(file, page, PAGE) == (ssize_t)PAGE, "writing the file: %s", strerror(errno));
    }
    int written = MUST(open(guest_path(path, "written"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    MUST(ftruncate(written, PAGES * PAGE));
    const int own = MAP_PRIVATE | MAP_ANONYMOUS;
    const int flags[ARRAY_LEN(parts)] = {own, own, MAP_PRIVATE, MAP_SHARED | MAP_ANONYMOUS, MAP_SHARED};
    const int files[ARRAY_LEN(parts)] = {-1, -1, file, -1, written};
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        parts[i].at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags[i], files[i], 0);
        CHECK(parts[i].at != MAP_FAILED, "mmap: %s", strerror(errno));
        for (size_t n = 0; n < PAGES; n++) overwrite(&parts[i], n);
        say_range(&parts[i]);
    }
    MUST(close(file));
    MUST(close(written));
    MUST(madvise(parts[1].at, PAGES * PAGE, MADV_DONTDUMP));
}

static void step_memory(struct part *part) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "lost.%s", part->name);
    if (guest_has(name)) {
        for (size_t n = 0; n < PAGES; n++)
            if (strcmp(part->name, "written"))
                check_page(part, n, seed_in_file(part, n));
            else
                CHECK(page_difference(part->at + n * PAGE, 0) >= 0, "page %zu of the written file was cleared", n);
        for (size_t n = 0; n < PAGES; n++) overwrite(part, n);
        MUST(unlink(guest_path(path, name)));
    }
    size_t page = random_below(&rng, PAGES);
    check_page(part, page, part->seed[page]);
    overwrite(part, random_below(&rng, PAGES));
}

static int live_in_memory(void) {
    set_up_memory();
    guest_ready();
    while (!guest_finishing()) {
        for (size_t i = 0; i < ARRAY_LEN(parts); i++) step_memory(&parts[i]);
        guest_step();
        guest_sleep_ms(5);
    }
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        for (size_t n = 0; n < PAGES; n++) check_page(&parts[i], n, parts[i].seed[n]);
    guest_ok();
}

static void say_pid(const char *name, pid_t pid) {
    char text[32];
    snprintf(text, sizeof text, "%d", pid);
    guest_link(name, text);
}

/* Answers each number with the next one, until there is nobody left to ask. */
__attribute__((noreturn)) static void answer(int from, int to) {
    uint64_t number;
    while (read(from, &number, sizeof number) == sizeof number) {
        number++;
        if (write(to, &number, sizeof number) != sizeof number) _exit(3);
    }
    _exit(0);
}

/* The child: `to_root` and `shared` may not be there. */
__attribute__((noreturn)) static void lead(int to_root, volatile uint64_t *shared) {
    int there[2], back[2];
    MUST(pipe2(there, 0));
    MUST(pipe2(back, 0));
    pid_t grandchild = MUST(fork());
    if (grandchild == 0) {
        close(there[1]), close(back[0]);
        if (to_root >= 0) close(to_root);
        answer(there[0], back[1]);
    }
    close(there[0]), close(back[1]);
    say_pid("say.grandchild", grandchild);
    say_pid("say.child", getpid());
    uint64_t number = 0;
    while (!guest_finishing()) {
        uint64_t answered = 0;
        CHECK(write(there[1], &number, sizeof number) == sizeof number, "to the grandchild: %s", strerror(errno));
        CHECK(read(back[0], &answered, sizeof answered) == sizeof answered, "from the grandchild: %s", strerror(errno));
        CHECK(answered == number + 1, "the grandchild answered %lu to %lu", answered, number);
        number = answered;
        if (to_root >= 0) CHECK(write(to_root, "x", 1) == 1, "to the root: %s", strerror(errno));
        if (shared) *shared = number;
        guest_step();
        CHECK(guest_steps == number, "step %lu, number %lu", guest_steps, number);
        guest_sleep_ms(5);
    }
    close(there[1]);
    int status;
    CHECK(MUST(waitpid(grandchild, &status, 0)) == grandchild && status == 0, "the grandchild ended with %#x", status);
    guest_ok();
}

static int live_in_tree(bool with_pipe, bool with_memory) {
    int ends[2] = {-1, -1};
    volatile uint64_t *shared = NULL;
    if (with_pipe) MUST(pipe2(ends, 0));
    if (with_memory) {
        shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    }
    pid_t child = MUST(fork());
    if (child == 0) {
        if (with_pipe) close(ends[0]);
        lead(ends[1], shared);
    }
    if (with_pipe) close(ends[1]);
    if (!with_memory) shared = NULL;
    pid_t other = MUST(fork());
    if (other == 0) {
        if (with_pipe) close(ends[0]);
        if (shared) MUST(munmap((void *)shared, PAGE));
        for (;;) pause();
    }
    say_pid("say.other", other);
    while (!guest_has("step") || guest_steps == 0) {
        struct stat step;
        char path[PATH_MAX];
        MUST(stat(guest_path(path, "step"), &step));
        guest_steps = (uint64_t)step.st_size;
        guest_sleep_ms(2);
    }
    guest_ready();
    char byte;
    if (with_pipe)
        while (read(ends[0], &byte, 1) == 1) continue;
    int status;
    CHECK(MUST(waitpid(child, &status, 0)) == child, "waitpid: %s", strerror(errno));
    MUST(kill(other, SIGKILL));
    MUST(waitpid(other, NULL, 0));
    return status == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    bool with_pipe = guest_option(argc, argv, "pipe", 0), with_memory = guest_option(argc, argv, "shared", 0);
    return guest_option(argc, argv, "tree", 0) ? live_in_tree(with_pipe, with_memory) : live_in_memory();
}
