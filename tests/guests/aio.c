/*
 * Linux AIO: contexts with completed operations that nobody has fetched, with operations under way, and with one that never
 * ends.
 *
 *   aio DIR idle    two contexts, a gap between them, and rings that have been turned; events wait to be fetched
 *   aio DIR busy    reads past the page cache, under way all the time, into memory that is checked; and syncs, which take longer
 *   aio DIR stuck   an operation that waits for ever: cr must refuse it
 */
#include "guest.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define LEFT 5     /* events that nobody fetches until the end */
#define DEPTH 16   /* reads under way */
#define BLOCK 8192

struct ring {
    uint32_t id, places, head, tail, magic, compatible, incompatible, header;
};

static aio_context_t first, second;
static int file;
static uint64_t expected; /* the next event's number */

static aio_context_t set_up(unsigned events) {
    aio_context_t context = 0;
    MUST(syscall(SYS_io_setup, events, &context));
    return context;
}

static void submit(aio_context_t context, struct iocb *operation) {
    long done = syscall(SYS_io_submit, context, 1, &operation);
    CHECK(done == 1, "io_submit: %ld %s", done, strerror(errno));
}

static struct io_event fetch(aio_context_t context) {
    struct io_event event;
    long done;
    while ((done = syscall(SYS_io_getevents, context, 1, 1, &event, NULL)) < 0 && errno == EINTR) {}
    CHECK(done == 1, "io_getevents: %ld %s", done, strerror(errno));
    return event;
}

/* -- idle --------------------------------------------------------------------------------------------------------------------- */

/* So many that none is written again soon: a job that ran on after its checkpoint has changed the file, and a restore leaves it so. */
static uint64_t cells[1 << 16];
static struct iocb writes[64];

/* A write of a number to the file at a place that follows from the number. */
static void write_number(aio_context_t context, uint64_t number) {
    struct iocb *operation = &writes[number % ARRAY_LEN(writes)];
    cells[number % ARRAY_LEN(cells)] = number;
    *operation = (struct iocb){.aio_data = number, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (uint32_t)file,
                               .aio_buf = (uintptr_t)&cells[number % ARRAY_LEN(cells)], .aio_nbytes = 8,
                               .aio_offset = (int64_t)(number % ARRAY_LEN(cells) * 8)};
    submit(context, operation);
}

static void expect_number(aio_context_t context, uint64_t number) {
    struct io_event event = fetch(context);
    CHECK(event.data == number && event.res == 8 && event.obj == (uintptr_t)&writes[number % ARRAY_LEN(writes)],
          "the event of %lu is %lu of %lx, with the result %ld", number, (uint64_t)event.data, (unsigned long)event.obj, (long)event.res);
    uint64_t found = 0;
    CHECK(pread(file, &found, 8, (off_t)(number % ARRAY_LEN(cells) * 8)) == 8 && found == number, "the file has %lu, not %lu", found, number);
}

static void idle(void) {
    first = set_up(10);
    aio_context_t between = set_up(300);
    second = set_up(700);
    MUST(syscall(SYS_io_destroy, between));
    const struct ring *one = (const struct ring *)first, *two = (const struct ring *)second;
    CHECK(one->id == 0 && two->id == 2 && two->places > one->places, "rings %u and %u", one->id, two->id);
    uint64_t number = 1;
    /* Once around and a little more. */
    for (; number < one->places + 40; number++) {
        write_number(first, number);
        expect_number(first, number);
    }
    expected = number;
    for (uint64_t left = 0; left < LEFT; left++) write_number(first, number++);
    write_number(second, 1);
    struct ring before[2] = {*one, *two};
    guest_ready();
    uint64_t in_second = 1;
    while (!guest_finishing()) {
        /* In the first ring the oldest is fetched and a new one put behind it; in the second one by one. */
        write_number(first, number++);
        expect_number(first, expected++);
        expect_number(second, in_second++);
        write_number(second, in_second);
        guest_step();
        uint32_t waiting = (one->tail + one->places - one->head) % one->places;
        CHECK(waiting == LEFT, "%u events wait", waiting);
        guest_sleep_ms_eintr(5);
    }
    CHECK(one->id == before[0].id && one->places == before[0].places && one->magic == before[0].magic, "the first ring changed");
    CHECK(two->id == before[1].id && two->places == before[1].places && two->magic == before[1].magic, "the second ring changed");
    CHECK(one->head == (before[0].head + guest_steps) % one->places && one->tail == (before[0].tail + guest_steps) % one->places,
          "the first ring is at %u to %u", one->head, one->tail);
    for (uint64_t left = 0; left < LEFT; left++) expect_number(first, expected++);
    expect_number(second, in_second);
    /* As many at a time as there is room for, and not one more. */
    unsigned fit = 0;
    while (fit < one->places + 10) {
        struct iocb *operation = &writes[fit % ARRAY_LEN(writes)];
        if (syscall(SYS_io_submit, first, 1, &operation) != 1) break;
        fit++;
    }
    CHECK(errno == EAGAIN && fit > 0 && fit < one->places, "%u operations fit into %u places", fit, one->places);
    for (unsigned i = 0; i < fit; i++) fetch(first);
    aio_context_t again = set_up(5);
    CHECK(((const struct ring *)again)->id == 1, "the gap was not left open");
    MUST(syscall(SYS_io_destroy, again));
    MUST(syscall(SYS_io_destroy, first));
    MUST(syscall(SYS_io_destroy, second));
}

/* -- busy --------------------------------------------------------------------------------------------------------------------- */

static unsigned char *buffers;
static struct iocb reads[DEPTH];

static void start_read(unsigned slot, uint64_t number) {
    unsigned char *buffer = buffers + slot * BLOCK;
    memset(buffer, 0xee, BLOCK);
    uint64_t block = number % 64;
    reads[slot] = (struct iocb){.aio_data = slot << 8 | block, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)file,
                                .aio_buf = (uintptr_t)buffer, .aio_nbytes = BLOCK, .aio_offset = (int64_t)(block * BLOCK)};
    submit(first, &reads[slot]);
}

/* Has a file of some megabytes written to the disk, which takes a while. */
static struct iocb sync_operation;
static bool syncing;
static uint64_t since;

static void start_sync(int synced) {
    static unsigned char much[4 << 20];
    memset(much, (int)guest_steps, sizeof much);
    CHECK(pwrite(synced, much, sizeof much, 0) == sizeof much, "writing: %s", strerror(errno));
    sync_operation = (struct iocb){.aio_data = DEPTH << 8, .aio_lio_opcode = IOCB_CMD_FSYNC, .aio_fildes = (uint32_t)synced};
    submit(first, &sync_operation);
    syncing = true;
    since = 0;
}

static void busy(void) {
    char path[PATH_MAX];
    int synced = MUST(open(guest_path(path, "synced"), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    buffers = MUST(mmap(NULL, DEPTH * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (uint64_t block = 0; block < 64; block++) {
        page_fill(buffers, 1 + 2 * block);
        page_fill(buffers + PAGE, 2 + 2 * block);
        CHECK(pwrite(file, buffers, BLOCK, (off_t)(block * BLOCK)) == BLOCK, "writing: %s", strerror(errno));
    }
    MUST(fsync(file));
    MUST(close(file));
    file = open(guest_path(path, "data"), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (file < 0) {
        guest_skip("direct", "O_DIRECT: %s", strerror(errno));
        file = MUST(open(path, O_RDONLY | O_CLOEXEC));
    }
    first = set_up(DEPTH + 1);
    uint64_t number = 0;
    for (unsigned slot = 0; slot < DEPTH; slot++) start_read(slot, number++);
    guest_ready();
    while (!guest_finishing()) {
        if (!syncing) start_sync(synced);
        for (int i = 0; i < 40; i++) {
            struct io_event event = fetch(first);
            if (event.data >> 8 == DEPTH) {
                CHECK(event.res == 0, "syncing: %ld", (long)event.res);
                syncing = false;
                continue;
            }
            CHECK(since++ < 200000, "the sync does not end");
            unsigned slot = (unsigned)(event.data >> 8);
            uint64_t block = event.data & 0xff;
            CHECK(event.res == BLOCK, "reading block %lu: %ld", block, (long)event.res);
            for (unsigned page = 0; page < 2; page++) {
                long at = page_difference(buffers + slot * BLOCK + page * PAGE, 1 + 2 * block + page);
                CHECK(at < 0, "step %lu: block %lu differs at %ld of page %u: %02x", guest_steps, block, at, page,
                      buffers[slot * BLOCK + page * PAGE + (unsigned)at]);
            }
            start_read(slot, number++);
        }
        guest_step();
    }
    for (unsigned slot = 0; slot < DEPTH + (syncing ? 1u : 0u); slot++) fetch(first);
    MUST(syscall(SYS_io_destroy, first));
}

/* -- stuck -------------------------------------------------------------------------------------------------------------------- */

static void stuck(void) {
    int ends[2];
    MUST(pipe(ends));
    first = set_up(4);
    static struct iocb operation;
    operation = (struct iocb){.aio_data = 7, .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)ends[0], .aio_buf = POLLIN};
    submit(first, &operation);
    char text[32];
    snprintf(text, sizeof text, "%lx", (unsigned long)first);
    guest_link("say.where", text);
    guest_ready();
    while (!guest_finishing()) {
        guest_step();
        guest_sleep_ms_eintr(5);
    }
    MUST(write(ends[1], "x", 1));
    struct io_event event = fetch(first);
    CHECK(event.data == 7 && event.res & POLLIN, "the event is %ld", (long)event.res);
}

int main(int argc, char **argv) {
    char path[PATH_MAX];
    guest_start(argc, argv);
    CHECK(argc >= 3, "usage: aio DIR KIND");
    file = MUST(open(guest_path(path, "data"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    if (strcmp(argv[2], "idle") == 0) idle();
    else if (strcmp(argv[2], "busy") == 0) busy();
    else stuck();
    guest_ok();
}
