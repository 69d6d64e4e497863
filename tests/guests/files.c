/*
 * The files that a plain job has open, in use while it runs.
 *
 *   files DIR
 */
#include "guest.h"
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>

static uint64_t rng = 3;

static int open_in_dir(const char *name, int flags) {
    char path[PATH_MAX];
    return MUST(open(guest_path(path, name), flags, 0640));
}

static void write_all(int fd, const void *data, size_t size, const char *what) {
    CHECK(write(fd, data, size) == (ssize_t)size, "write of %zu bytes to %s: %s", size, what, strerror(errno));
}

/* Byte `i` of an endless known text. */
static unsigned char text_byte(uint64_t i) {
    uint64_t state = i / 8;
    return (unsigned char)(random_next(&state) >> i % 8 * 8);
}

static void text(unsigned char *to, uint64_t from, size_t size) {
    for (size_t i = 0; i < size; i++) to[i] = text_byte(from + i);
}

static void check_text(const unsigned char *is, uint64_t from, size_t size, const char *what) {
    for (size_t i = 0; i < size; i++)
        CHECK(is[i] == text_byte(from + i), "%s: byte %lu is %02x, expected %02x", what, from + i, is[i], text_byte(from + i));
}

/* -- regular files ------------------------------------------------------------------------------------------------------------ */

#define STATIC_SIZE 100000
static int reader, reader_dup, reader_high, reader_own, appender, grower, overwriter, direct = -1, synced, sparse;
static uint64_t reader_at, reader_own_at, grown, appended;
static char *direct_buffer;

static void set_up_regular(void) {
    unsigned char data[STATIC_SIZE];
    int made = open_in_dir("static.txt", O_CREAT | O_TRUNC | O_WRONLY);
    text(data, 0, sizeof data);
    write_all(made, data, sizeof data, "static.txt");
    close(made);
    reader = open_in_dir("static.txt", O_RDONLY | O_NOATIME);
    reader_dup = MUST(fcntl(reader, F_DUPFD_CLOEXEC, 0));
    reader_high = MUST(dup2(reader, 997));
    reader_own = open_in_dir("static.txt", O_RDONLY | O_CLOEXEC);
    appender = open_in_dir("appended.txt", O_CREAT | O_TRUNC | O_WRONLY | O_APPEND | O_CLOEXEC);
    grower = open_in_dir("grown.bin", O_CREAT | O_TRUNC | O_RDWR);
    overwriter = open_in_dir("overwritten.bin", O_CREAT | O_TRUNC | O_RDWR);
    synced = open_in_dir("synced.bin", O_CREAT | O_TRUNC | O_RDWR | O_SYNC);
    sparse = open_in_dir("sparse.bin", O_CREAT | O_TRUNC | O_RDWR);
    MUST(ftruncate(sparse, 10L << 30));
    CHECK(pwrite(sparse, "far", 3, 9L << 30) == 3, "write to sparse.bin: %s", strerror(errno));
    MUST(lseek(sparse, 9L << 30, SEEK_SET));
    write_all(synced, "synced", 6, "synced.bin");
    char path[PATH_MAX];
    direct = open(guest_path(path, "direct.bin"), O_CREAT | O_TRUNC | O_RDWR | O_DIRECT, 0640);
    if (direct < 0) guest_skip("o-direct", "open with O_DIRECT: %s", strerror(errno));
    CHECK(posix_memalign((void **)&direct_buffer, PAGE, PAGE) == 0, "posix_memalign");
}

static void step_regular(void) {
    unsigned char data[300];
    char line[32];
    /* One description, three descriptors, one offset. */
    int fds[] = {reader, reader_dup, reader_high};
    int fd = fds[random_below(&rng, 3)];
    if (reader_at + 300 > STATIC_SIZE) MUST(lseek(fd, 0, SEEK_SET)), reader_at = 0;
    CHECK(read(fd, data, 300) == 300, "read of static.txt: %s", strerror(errno));
    check_text(data, reader_at, 300, "static.txt through shared offset");
    reader_at += 300;
    if (reader_own_at + 70 > STATIC_SIZE) MUST(lseek(reader_own, 0, SEEK_SET)), reader_own_at = 0;
    CHECK(read(reader_own, data, 70) == 70, "read of static.txt: %s", strerror(errno));
    check_text(data, reader_own_at, 70, "static.txt through an own offset");
    reader_own_at += 70;

    int length = snprintf(line, sizeof line, "line %lu\n", appended++);
    write_all(appender, line, (size_t)length, "appended.txt");
    size_t more = random_below(&rng, 300);
    text(data, grown, more);
    write_all(grower, data, more, "grown.bin");
    grown += more;
    MUST(lseek(overwriter, (off_t)(guest_steps * 64 % 4096), SEEK_SET));
    text(data, guest_steps * 64 % 4096, 64);
    write_all(overwriter, data, 64, "overwritten.bin");
    if (direct >= 0) {
        page_fill(direct_buffer, guest_steps + 1);
        CHECK(pwrite(direct, direct_buffer, PAGE, (off_t)(guest_steps % 16 * PAGE)) == (ssize_t)PAGE, "O_DIRECT write: %s", strerror(errno));
        memset(direct_buffer, 0, PAGE);
        CHECK(pread(direct, direct_buffer, PAGE, (off_t)(guest_steps % 16 * PAGE)) == (ssize_t)PAGE, "O_DIRECT read: %s", strerror(errno));
        CHECK(page_difference(direct_buffer, guest_steps + 1) < 0, "O_DIRECT: read something else than was written");
    }
}

static void check_regular(void) {
    CHECK(lseek(reader, 0, SEEK_CUR) == (off_t)reader_at && lseek(reader_high, 0, SEEK_CUR) == (off_t)reader_at,
          "static.txt: the offset is %ld, expected %lu", lseek(reader, 0, SEEK_CUR), reader_at);
    CHECK(lseek(sparse, 0, SEEK_CUR) == 9L << 30, "sparse.bin: the offset is %ld", lseek(sparse, 0, SEEK_CUR));
    char far[3];
    CHECK(read(sparse, far, 3) == 3 && memcmp(far, "far", 3) == 0, "sparse.bin: other contents");
    /* The growing files hold exactly what was written up to now: nothing twice, nothing from the time that was undone. */
    CHECK(lseek(grower, 0, SEEK_CUR) == (off_t)grown && lseek(grower, 0, SEEK_END) == (off_t)grown,
          "grown.bin: the size is %ld, expected %lu", lseek(grower, 0, SEEK_END), grown);
    for (uint64_t at = 0; at < grown;) {
        unsigned char data[4096];
        ssize_t got = pread(grower, data, sizeof data, (off_t)at);
        CHECK(got > 0, "grown.bin: read: %s", strerror(errno));
        check_text(data, at, (size_t)got, "grown.bin");
        at += (uint64_t)got;
    }
    for (uint64_t at = 0; at < 4096 && at / 64 < guest_steps; at += 64) {
        unsigned char data[64];
        CHECK(pread(overwriter, data, 64, (off_t)at) == 64, "overwritten.bin: read: %s", strerror(errno));
        check_text(data, at, 64, "overwritten.bin");
    }
    char path[PATH_MAX];
    FILE *lines = fopen(guest_path(path, "appended.txt"), "r");
    CHECK(lines, "fopen %s: %s", path, strerror(errno));
    uint64_t number, count = 0;
    while (fscanf(lines, "line %lu\n", &number) == 1) {
        CHECK(number == count, "appended.txt: line %lu says %lu", count, number);
        count++;
    }
    CHECK(feof(lines) && count == appended, "appended.txt: %lu lines, expected %lu", count, appended);
    fclose(lines);
}

/* -- files without a name ------------------------------------------------------------------------------------------------------ */

static int deleted, deleted_again, deleted_read_only, tmpfile_fd = -1, deleted_shm = -1;
static uint64_t deleted_size, shm_pages;

static void set_up_deleted(void) {
    char path[PATH_MAX], self[64];
    deleted = open_in_dir("deleted.txt", O_CREAT | O_TRUNC | O_RDWR);
    MUST(unlink(guest_path(path, "deleted.txt")));
    snprintf(self, sizeof self, "/proc/self/fd/%d", deleted);
    deleted_again = MUST(open(self, O_RDONLY)); /* a second description of the same file */
    int made = open_in_dir("deleted too.txt", O_CREAT | O_TRUNC | O_WRONLY);
    unsigned char data[5000];
    text(data, 0, sizeof data);
    write_all(made, data, sizeof data, "deleted too.txt");
    close(made);
    deleted_read_only = open_in_dir("deleted too.txt", O_RDONLY);
    MUST(unlink(guest_path(path, "deleted too.txt")));
    MUST(lseek(deleted_read_only, 1234, SEEK_SET));
    tmpfile_fd = open(guest_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (tmpfile_fd < 0) guest_skip("o-tmpfile", "open with O_TMPFILE: %s", strerror(errno));
    else write_all(tmpfile_fd, data, sizeof data, "O_TMPFILE file");
    snprintf(path, sizeof path, "/dev/shm/cr-guest-%d", getpid());
    deleted_shm = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (deleted_shm < 0) guest_skip("dev-shm", "open %s: %s", path, strerror(errno));
    else MUST(unlink(path));
}

static void step_deleted(void) {
    unsigned char data[200];
    text(data, deleted_size, sizeof data);
    write_all(deleted, data, sizeof data, "the deleted file");
    CHECK(read(deleted_again, data, sizeof data) == sizeof data, "the deleted file's second description: %s", strerror(errno));
    check_text(data, deleted_size, sizeof data, "deleted file, second description");
    deleted_size += sizeof data;
    if (deleted_shm >= 0) {
        char page[PAGE];
        page_fill(page, 900 + shm_pages % 32);
        CHECK(pwrite(deleted_shm, page, PAGE, (off_t)(shm_pages % 32 * PAGE)) == (ssize_t)PAGE, "deleted file in /dev/shm: %s", strerror(errno));
        shm_pages++;
    }
}

static void check_no_name(int fd, uint64_t size, const char *what) {
    struct stat stat;
    unsigned char *data = malloc(size);
    MUST(fstat(fd, &stat));
    CHECK(stat.st_nlink == 0, "%s has %lu names", what, stat.st_nlink);
    CHECK((uint64_t)stat.st_size == size, "%s has %ld bytes, expected %lu", what, stat.st_size, size);
    CHECK(pread(fd, data, size, 0) == (ssize_t)size, "%s: read: %s", what, strerror(errno));
    check_text(data, 0, size, what);
    free(data);
}

static void check_deleted(void) {
    check_no_name(deleted, deleted_size, "the deleted file");
    check_no_name(deleted_again, deleted_size, "the deleted file's second description");
    check_no_name(deleted_read_only, 5000, "the deleted read-only file");
    CHECK(lseek(deleted_read_only, 0, SEEK_CUR) == 1234, "the deleted read-only file: other offset");
    CHECK(write(deleted_read_only, "x", 1) == -1 && errno == EBADF, "the deleted read-only file can be written");
    if (tmpfile_fd >= 0) check_no_name(tmpfile_fd, 5000, "the O_TMPFILE file");
    for (uint64_t page = 0; deleted_shm >= 0 && page < 32 && page < shm_pages; page++) {
        char data[PAGE];
        CHECK(pread(deleted_shm, data, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE && page_difference(data, 900 + page) < 0,
              "deleted file in /dev/shm: page %lu differs", page);
    }
}

/* -- directories -------------------------------------------------------------------------------------------------------------- */

#define ENTRIES 500
static DIR *listing;
static bool seen[ENTRIES];
static int directory_path;

static void list_some(int count) {
    struct dirent *entry;
    int number;
    while (count-- && (entry = readdir(listing)))
        if (sscanf(entry->d_name, "entry-%d", &number) == 1) {
            CHECK(number >= 0 && number < ENTRIES && !seen[number], "readdir gives %s a second time", entry->d_name);
            seen[number] = true;
        }
}

static void set_up_directories(void) {
    char path[PATH_MAX], name[32];
    MUST(mkdir(guest_path(path, "many"), 0755));
    for (int i = 0; i < ENTRIES; i++) {
        snprintf(name, sizeof name, "many/entry-%03d", i);
        close(open_in_dir(name, O_CREAT | O_WRONLY));
    }
    listing = opendir(path);
    CHECK(listing, "opendir: %s", strerror(errno));
    list_some(150);
    directory_path = MUST(open(path, O_PATH | O_DIRECTORY));
}

static void check_directories(void) {
    list_some(INT_MAX);
    for (int i = 0; i < ENTRIES; i++) CHECK(seen[i], "readdir never gave entry-%03d", i);
    struct stat stat;
    MUST(fstatat(directory_path, "entry-007", &stat, 0));
}

/* -- pipes -------------------------------------------------------------------------------------------------------------------- */

struct pipe {
    const char *name;
    int flags, size, ends[2];
    uint64_t written, read; /* positions in the known text */
};

enum { PLAIN, FULL, NONBLOCKING, LARGE, PACKETS, EMPTY, NO_WRITER, NO_READER, PIPES };
static struct pipe pipes[PIPES] = {
    [PLAIN] = {.name = "pipe"},
    [FULL] = {.name = "full pipe"},
    [NONBLOCKING] = {.name = "non-blocking pipe", .flags = O_NONBLOCK | O_CLOEXEC},
    [LARGE] = {.name = "pipe of 1 MiB", .size = 1 << 20},
    [PACKETS] = {.name = "pipe of packets", .flags = O_DIRECT},
    [EMPTY] = {.name = "empty pipe"},
    [NO_WRITER] = {.name = "pipe without a writer"},
    [NO_READER] = {.name = "pipe without a reader"},
};
static int plain_dup;

static void put(struct pipe *pipe, size_t size) {
    unsigned char data[8192];
    for (; size > 0;) {
        size_t now = size < sizeof data ? size : sizeof data;
        text(data, pipe->written, now);
        write_all(pipe->ends[1], data, now, pipe->name);
        pipe->written += now;
        size -= now;
    }
}

static void get(struct pipe *pipe, size_t most, size_t expected) {
    unsigned char data[8192];
    ssize_t got = read(pipe->ends[0], data, most);
    CHECK(got == (ssize_t)expected, "%s: read gave %zd (%s), expected %zu", pipe->name, got, strerror(errno), expected);
    check_text(data, pipe->read, (size_t)got, pipe->name);
    pipe->read += (uint64_t)got;
}

static size_t packet_size(uint64_t index) { return 1 + index * 37 % 4000; }
static uint64_t packets_in, packets_out;

static void set_up_pipes(void) {
    for (int i = 0; i < PIPES; i++) {
        MUST(pipe2(pipes[i].ends, pipes[i].flags));
        if (pipes[i].size) MUST(fcntl(pipes[i].ends[0], F_SETPIPE_SZ, pipes[i].size));
    }
    put(&pipes[PLAIN], 1000);
    put(&pipes[FULL], 65536);
    put(&pipes[NONBLOCKING], 5000);
    put(&pipes[LARGE], 300000);
    while (packets_in < 10) put(&pipes[PACKETS], packet_size(packets_in++));
    put(&pipes[NO_WRITER], 700);
    put(&pipes[NO_READER], 600);
    close(pipes[NO_WRITER].ends[1]);
    close(pipes[NO_READER].ends[0]);
    plain_dup = MUST(dup2(pipes[PLAIN].ends[1], 333));
}

static void step_pipes(void) {
    put(&pipes[PLAIN], 10);
    get(&pipes[PLAIN], 10, 10);
    get(&pipes[FULL], 4096, 4096);
    put(&pipes[FULL], 4096);
    put(&pipes[LARGE], 3);
    get(&pipes[LARGE], 3, 3);
    put(&pipes[PACKETS], packet_size(packets_in++));
    get(&pipes[PACKETS], 8192, packet_size(packets_out++));
    get(&pipes[NONBLOCKING], 8192, pipes[NONBLOCKING].written - pipes[NONBLOCKING].read);
    CHECK(read(pipes[NONBLOCKING].ends[0], &(char){0}, 1) == -1 && errno == EAGAIN, "the non-blocking pipe blocks or has more data");
    put(&pipes[NONBLOCKING], 1 + random_below(&rng, 8000));
}

static void drain(struct pipe *pipe) {
    while (pipe->read < pipe->written) {
        uint64_t left = pipe->written - pipe->read;
        get(pipe, left < 4096 ? left : 4096, left < 4096 ? left : 4096);
    }
}

static void check_pipes(void) {
    for (int i = 0; i < PIPES; i++) {
        int in_pipe = 0, end = i == NO_READER ? pipes[i].ends[1] : pipes[i].ends[0];
        MUST(ioctl(end, FIONREAD, &in_pipe));
        CHECK((uint64_t)in_pipe == pipes[i].written - pipes[i].read, "%s holds %d bytes, expected %lu", pipes[i].name, in_pipe,
              pipes[i].written - pipes[i].read);
        int size = MUST(fcntl(end, F_GETPIPE_SZ));
        CHECK(size == (pipes[i].size ? pipes[i].size : 65536), "%s has a size of %d", pipes[i].name, size);
    }
    MUST(fcntl(pipes[FULL].ends[1], F_SETFL, O_NONBLOCK));
    CHECK(write(pipes[FULL].ends[1], "x", 1) == -1 && errno == EAGAIN, "the full pipe is not full");
    write_all(plain_dup, (unsigned char[]){text_byte(pipes[PLAIN].written)}, 1, "the pipe's duplicate");
    pipes[PLAIN].written++;
    while (packets_out < packets_in) get(&pipes[PACKETS], 8192, packet_size(packets_out++));
    drain(&pipes[PLAIN]);
    drain(&pipes[FULL]);
    drain(&pipes[LARGE]);
    get(&pipes[NO_WRITER], 8192, 700);
    get(&pipes[NO_WRITER], 8192, 0);
    CHECK(write(pipes[NO_READER].ends[1], "x", 1) == -1 && errno == EPIPE, "a pipe without a reader takes data");
}

/* Two threads: one writes the known text into a pipe, the other reads and compares it. */
static int stream[2];
static volatile bool stream_stops;
static volatile uint64_t streamed;

static void *stream_writer(void *unused) {
    unsigned char data[1500];
    for (uint64_t at = 0; !stream_stops;) {
        size_t size = 1 + at % sizeof data;
        text(data, at, size);
        write_all(stream[1], data, size, "the stream");
        at += size;
        guest_sleep_ms(1);
    }
    close(stream[1]);
    return unused;
}

static void *stream_reader(void *unused) {
    unsigned char data[1000];
    ssize_t got;
    while ((got = read(stream[0], data, sizeof data)) > 0) {
        check_text(data, streamed, (size_t)got, "stream between two threads");
        streamed += (uint64_t)got;
    }
    CHECK(got == 0, "stream between two threads: read: %s", strerror(errno));
    return unused;
}

/* -- devices ------------------------------------------------------------------------------------------------------------------ */

static int null, zero, full, randoms, urandoms;

static void check_devices(void) {
    char data[64] = {1};
    write_all(null, data, sizeof data, "/dev/null");
    CHECK(read(null, data, sizeof data) == 0, "/dev/null gives data");
    CHECK(read(zero, data, sizeof data) == sizeof data && data[0] == 0, "/dev/zero gives something else than zeroes");
    CHECK(write(full, data, 1) == -1 && errno == ENOSPC, "/dev/full takes data");
    CHECK(read(randoms, data, 8) == 8 && read(urandoms, data, 8) == 8, "the random devices give no data");
}

/* -- the table of descriptors ---------------------------------------------------------------------------------------------------- */

/* All descriptors with their flags, and which file it is where the file has a name. */
static void describe(char *out, size_t size) {
    char *end = out + size;
    for (int fd = 3; fd < 1024; fd++) {
        struct stat stat;
        char self[64], target[PATH_MAX] = "";
        int fd_flags = fcntl(fd, F_GETFD);
        if (fd_flags < 0) continue;
        MUST(fstat(fd, &stat));
        out += snprintf(out, (size_t)(end - out), "fd %d cloexec %d flags %o mode %o ", fd, fd_flags, MUST(fcntl(fd, F_GETFL)), stat.st_mode);
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        MUST(readlink(self, target, sizeof target - 1));
        if (!S_ISFIFO(stat.st_mode) && stat.st_nlink > 0)
            out += snprintf(out, (size_t)(end - out), "%s %lx:%lu", target, stat.st_dev, stat.st_ino);
        out += snprintf(out, (size_t)(end - out), "\n");
    }
}

static char fds_before[1 << 20], fds_after[1 << 20];

static void check_descriptors(void) {
    describe(fds_after, sizeof fds_after);
    char *save_a = NULL, *save_b = NULL, *a = strtok_r(fds_before, "\n", &save_a), *b = strtok_r(fds_after, "\n", &save_b);
    for (; a && b; a = strtok_r(NULL, "\n", &save_a), b = strtok_r(NULL, "\n", &save_b))
        CHECK(strcmp(a, b) == 0, "was  %s  and is  %s", a, b);
    CHECK(!a && !b, "there are %s descriptors than before: %s", a ? "fewer" : "more", a ? a : b);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    set_up_regular();
    set_up_deleted();
    set_up_directories();
    set_up_pipes();
    null = MUST(open("/dev/null", O_RDWR));
    zero = MUST(open("/dev/zero", O_RDONLY));
    full = MUST(open("/dev/full", O_WRONLY | O_CLOEXEC));
    randoms = MUST(open("/dev/random", O_RDONLY | O_NONBLOCK));
    urandoms = MUST(open("/dev/urandom", O_RDONLY));
    MUST(pipe2(stream, O_CLOEXEC));
    pthread_t writer, reading;
    MUST0(pthread_create(&writer, NULL, stream_writer, NULL));
    MUST0(pthread_create(&reading, NULL, stream_reader, NULL));
    describe(fds_before, sizeof fds_before);
    guest_ready();
    while (!guest_finishing()) {
        step_regular();
        step_deleted();
        step_pipes();
        check_devices();
        if (guest_steps % 20 == 0) list_some(1);
        guest_step();
        guest_sleep_ms(10);
    }
    check_descriptors();
    check_regular();
    check_deleted();
    check_directories();
    check_pipes();
    check_devices();
    uint64_t before = streamed;
    guest_sleep_ms(200);
    CHECK(streamed != before, "the stream between two threads has stopped");
    stream_stops = true;
    MUST0(pthread_join(writer, NULL));
    MUST0(pthread_join(reading, NULL));
    guest_ok();
}
