/*
 * Memory between processes: shared on purpose, and shared by fork until somebody writes.
 *
 *   tree_memory DIR PART        (`tree_memory - list` prints the parts)
 */
#include "tree.h"
#include <pthread.h>

/* -- shared-memory: objects that four processes map --------------------------------------------------------------------------------- */

enum { SHARERS = 4, OBJECTS = 5, OBJECT_PAGES = 64 };

static const char *const object_names[OBJECTS] = {"anonymous", "memfd", "file", "deleted file", "second view of the memfd"};
static char *objects[OBJECTS];
static int object_memfd;
static struct worker sharers[SHARERS];

/* At the start of each object. Pages from the first on belong to the sharers in turn, and hold what belongs to their seeds. */
struct board {
    _Atomic uint64_t counts[SHARERS], sum;
    uint64_t seeds[OBJECT_PAGES];
    pthread_mutex_t mutex;
    uint64_t first, second; /* equal whenever the mutex is free */
};
_Static_assert(sizeof(struct board) <= PAGE, "the board is larger than a page");

static struct board *board_of(int object) { return (struct board *)objects[object]; }

static void objects_write(int sharer, uint64_t *rng) {
    for (int object = 0; object < OBJECTS; object++) {
        struct board *board = board_of(object);
        size_t page = 1 + random_below(rng, (OBJECT_PAGES - 1) / SHARERS) * SHARERS + (size_t)sharer;
        if (page >= OBJECT_PAGES) continue;
        board->seeds[page] = random_next(rng) | 1;
        page_fill(objects[object] + page * PAGE, board->seeds[page]);
        board->counts[sharer]++;
        board->sum++;
        int locked = pthread_mutex_lock(&board->mutex);
        CHECK(locked == 0, "sharer %d: the mutex in the %s: %s", sharer, object_names[object], strerror(locked));
        CHECK(board->first == board->second, "sharer %d: the mutex in the %s did not protect", sharer, object_names[object]);
        board->first += (uint64_t)sharer + 1;
        board->second += (uint64_t)sharer + 1;
        MUST0(pthread_mutex_unlock(&board->mutex));
    }
}

static void objects_check(int sharer) {
    for (int object = 0; object < OBJECTS; object++) {
        struct board *board = board_of(object);
        uint64_t sum = 0;
        for (int i = 0; i < SHARERS; i++) sum += board->counts[i];
        CHECK(sum == board->sum, "%d: the counts in the %s are %lu, not %lu", sharer, object_names[object], sum, board->sum);
        for (size_t page = 1; page < OBJECT_PAGES; page++) {
            long differs = page_difference(objects[object] + page * PAGE, board->seeds[page]);
            CHECK(differs < 0, "%d: page %zu of the %s differs at byte %ld", sharer, page, object_names[object], differs);
        }
    }
}

static void sharer_body(int number) {
    uint64_t rng = (uint64_t)number + 1;
    if (number == 1) { /* elsewhere in its own address space */
        char *moved = mremap(objects[0], OBJECT_PAGES * PAGE, OBJECT_PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                             (char *)0x200000000000 + 7 * PAGE);
        CHECK(moved != MAP_FAILED, "mremap: %s", strerror(errno));
        objects[0] = moved;
    }
    worker_answer();
    while (worker_order()) {
        objects_write(number, &rng);
        worker_answer();
    }
    objects_check(number);
    /* The last one dies with a mutex in its hands. */
    if (number == SHARERS - 1) {
        for (int object = 0; object < OBJECTS; object++) MUST0(pthread_mutex_lock(&board_of(object)->mutex));
        worker_answer();
        worker_order();
        kill(getpid(), SIGKILL);
    }
    _exit(number);
}

static void shared_memory_set_up(void) {
    char path[PATH_MAX];
    size_t size = OBJECT_PAGES * PAGE;
    object_memfd = MUST(memfd_create("shared", MFD_CLOEXEC));
    int file = MUST(open(guest_path(path, "shared-file"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    int deleted = MUST(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    int fds[OBJECTS] = {-1, object_memfd, file, deleted, object_memfd};
    for (int object = 0; object < OBJECTS; object++) {
        bool again = object == OBJECTS - 1;
        if (fds[object] >= 0) MUST(ftruncate(fds[object], (off_t)(again ? 2 * size : size)));
        objects[object] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | (fds[object] < 0 ? MAP_ANONYMOUS : 0), fds[object],
                               again ? (off_t)size : 0);
        CHECK(objects[object] != MAP_FAILED, "mmap for the %s: %s", object_names[object], strerror(errno));
        pthread_mutexattr_t attributes;
        MUST0(pthread_mutexattr_init(&attributes));
        MUST0(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED));
        MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
        MUST0(pthread_mutex_init(&board_of(object)->mutex, &attributes));
    }
    MUST(close(file));
    MUST(close(deleted));
    for (int i = 0; i < SHARERS; i++) sharers[i] = worker_start(sharer_body, i);
}

static void shared_memory_step(void) {
    /* All write at once. */
    for (int i = 0; i < SHARERS; i++) pipe_put(sharers[i].orders, "s", 1);
    char answer;
    for (int i = 0; i < SHARERS; i++) pipe_get(sharers[i].answers, &answer, 1);
    /* And the root through write(2), which no page table shows: the seed of the last page of the memfd's first half. */
    uint64_t page[PAGE / 8];
    struct board *board = board_of(1);
    board->seeds[OBJECT_PAGES - 1] = guest_steps + 1;
    page_fill(page, board->seeds[OBJECT_PAGES - 1]);
    CHECK(pwrite(object_memfd, page, PAGE, (OBJECT_PAGES - 1) * PAGE) == PAGE, "pwrite: %s", strerror(errno));
}

static void shared_memory_finish(void) {
    objects_check(-1);
    uint64_t first[OBJECTS];
    for (int object = 0; object < OBJECTS; object++) {
        struct board *board = board_of(object);
        uint64_t expected = 0;
        for (int i = 0; i < SHARERS; i++) expected += board->counts[i] * ((uint64_t)i + 1);
        first[object] = board->first;
        CHECK(board->first == expected && board->second == expected, "the %s holds %lu and %lu instead of %lu", object_names[object],
              board->first, board->second, expected);
    }
    for (int i = 0; i < SHARERS - 1; i++) worker_end(&sharers[i], i);
    const struct worker *last = &sharers[SHARERS - 1];
    char answer;
    int status = 0;
    worker_finish(last);
    pipe_get(last->answers, &answer, 1);
    pipe_put(last->orders, "s", 1);
    CHECK(waitpid(last->pid, &status, 0) == last->pid && WIFSIGNALED(status), "the last sharer ended with status %#x", status);
    for (int object = 0; object < OBJECTS; object++) {
        struct board *board = board_of(object);
        int locked = pthread_mutex_lock(&board->mutex);
        CHECK(locked == EOWNERDEAD, "the mutex in the %s, whose owner has died: %s", object_names[object], strerror(locked));
        MUST0(pthread_mutex_consistent(&board->mutex));
        MUST0(pthread_mutex_unlock(&board->mutex));
        CHECK(board->first == first[object], "somebody wrote to the %s", object_names[object]);
    }
    char path[PATH_MAX], page[PAGE];
    int file = MUST(open(guest_path(path, "shared-file"), O_RDONLY | O_CLOEXEC));
    for (size_t i = 1; i < OBJECT_PAGES; i++) {
        CHECK(pread(file, page, PAGE, (off_t)(i * PAGE)) == PAGE, "pread: %s", strerror(errno));
        CHECK(page_difference(page, board_of(2)->seeds[i]) < 0, "page %zu of the file is not what is mapped", i);
    }
}

/* -- cow: memory that is one until somebody writes ------------------------------------------------------------------------------------ */

enum { COW_CHILDREN = 8, COW_MIB = 64 };

static struct pattern cow;
static struct worker cow_children[COW_CHILDREN];

/* Proportional set sizes of the whole tree in KiB: what it really takes. */
static void cow_say(const char *when) {
    uint64_t sum = 0;
    for (int i = -1; i < COW_CHILDREN; i++) {
        char path[64], text[4096];
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", i < 0 ? getpid() : cow_children[i].pid);
        guest_read_file(path, text, sizeof text);
        char *pss = strstr(text, "\nPss:");
        CHECK(pss, "no Pss in %s", path);
        sum += strtoul(pss + 5, NULL, 10);
    }
    char name[32], value[32];
    snprintf(name, sizeof name, "say.pss.%s", when);
    snprintf(value, sizeof value, "%lu", sum);
    guest_link(name, value);
}

/* It writes to one MiB of its own, some of it again with each step. */
static void cow_body(int number) {
    size_t from = (size_t)(3 + 7 * number) * 256;
    cow.rng = (uint64_t)number + 900;
    for (size_t page = from; page < from + 256; page++) pattern_write(&cow, page);
    worker_answer();
    while (worker_order()) {
        for (int i = 0; i < 8; i++) pattern_write(&cow, from + random_below(&cow.rng, 256));
        worker_answer();
    }
    pattern_check(&cow, "child", number);
    _exit(number + 1);
}

static void cow_set_up(void) {
    cow = pattern_make(COW_MIB * 256, 1000);
    for (size_t page = 0; page < cow.pages; page++) pattern_write(&cow, page);
    for (int i = 0; i < COW_CHILDREN; i++) cow_children[i] = worker_start(cow_body, i);
    cow_say("ready");
}

static void cow_step(void) {
    for (int i = 0; i < COW_CHILDREN; i++) worker_step(&cow_children[i]);
    /* The parent writes too, always to the same place: the children keep what was there. */
    pattern_write(&cow, 60 * 256 + guest_steps % 64);
}

static void cow_finish(void) {
    cow_say("finish");
    pattern_check(&cow, "parent", 0);
    for (int i = 0; i < COW_CHILDREN; i++) worker_end(&cow_children[i], i + 1);
}

int main(int argc, char **argv) {
    static const struct part parts[] = {
        {"shared-memory", shared_memory_set_up, shared_memory_step, shared_memory_finish},
        {"cow", cow_set_up, cow_step, cow_finish},
    };
    return tree_main(argc, argv, parts, ARRAY_LEN(parts));
}
