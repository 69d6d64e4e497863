/*
 * Files by what is left of their names: O_PATH descriptors of everything, files with other links, removed directories; files
 * with O_DIRECT and O_APPEND; memory files with every seal.
 */
#include "guest.h"
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif

static int put(const char *name, int flags, const char *text) {
    char path[PATH_MAX];
    int fd = MUST(open(guest_path(path, name), flags | O_CREAT, 0640));
    MUST(write(fd, text, strlen(text)));
    return fd;
}

static int name_only(const char *name, int flags) {
    char path[PATH_MAX];
    return MUST(open(guest_path(path, name), flags | O_PATH));
}

static void check_name_only(int fd, int kind, int flags) {
    struct stat stat;
    char text[4];
    MUST(fstat(fd, &stat));
    CHECK((int)(stat.st_mode & S_IFMT) == kind, "fd %d has mode %o", fd, stat.st_mode);
    int now = fcntl(fd, F_GETFL);
    CHECK((now & (O_PATH | O_NOFOLLOW | O_DIRECTORY)) == (O_PATH | flags), "fd %d has flags %o", fd, now);
    CHECK(read(fd, text, 1) == -1 && errno == EBADF, "fd %d can be read", fd);
}

static void check_text(int fd, const char *text) {
    char got[64] = "", path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int file = MUST(open(path, O_RDONLY));
    ssize_t length = MUST(read(file, got, sizeof got));
    CHECK(length == (ssize_t)strlen(text) && memcmp(got, text, (size_t)length) == 0, "fd %d holds %s", fd, got);
    close(file);
}

static bool same(int a, int b) {
    struct stat one, other;
    MUST(fstat(a, &one));
    MUST(fstat(b, &other));
    return one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

static int memory(const char *name, unsigned char byte) {
    int fd = MUST(memfd_create(name, MFD_ALLOW_SEALING));
    MUST(ftruncate(fd, (off_t)(4 * PAGE)));
    for (int page = 0; page < 4; page++) MUST(pwrite(fd, &byte, 1, (off_t)(page * (int)PAGE)));
    return fd;
}

static unsigned char *map(int fd, int prot) { return MUST(mmap(NULL, 4 * PAGE, prot, MAP_SHARED, fd, 0)); }

static bool fails(void *mapping) { return mapping == MAP_FAILED && errno == EPERM; }

int main(int argc, char **argv) {
    guest_start(argc, argv);
    char path[PATH_MAX], other[PATH_MAX];
    /* What is only named. */
    int plain = put("plain", O_RDWR, "plain"), gone = put("gone", O_RDWR, "gone");
    close(plain);
    MUST(symlink("plain", guest_path(path, "link")));
    MUST(mkfifo(guest_path(path, "fifo"), 0600));
    MUST(mkdir(guest_path(path, "dir"), 0700));
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    MUST(chdir(guest_dir));
    strcpy(address.sun_path, "socket");
    MUST(bind(listener, (struct sockaddr *)&address, sizeof address));
    close(listener);
    int p_plain = name_only("plain", 0), p_link = name_only("link", O_NOFOLLOW), p_fifo = name_only("fifo", 0);
    int p_dir = name_only("dir", O_DIRECTORY), p_socket = name_only("socket", 0), p_gone = name_only("gone", 0);
    int p_device = MUST(open("/dev/null", O_PATH));
    MUST(unlink(guest_path(path, "gone")));
    close(gone);

    /* Names that were removed. One has another that is near, one has none that can be found. */
    MUST(mkdir(guest_path(path, "deep"), 0700));
    MUST(mkdir(guest_path(path, "deep/a"), 0700));
    MUST(mkdir(guest_path(path, "deep/a/b"), 0700));
    MUST(mkdir(guest_path(path, "deep/a/near"), 0700));
    int near = put("deep/a/b/one", O_RDWR, "near"), far = put("deep/a/b/two", O_RDWR | O_APPEND, "far");
    MUST(link(guest_path(path, "deep/a/b/one"), guest_path(other, "deep/a/near/uno")));
    MUST(link(guest_path(path, "deep/a/b/two"), guest_path(other, "far")));
    MUST(unlink(guest_path(path, "deep/a/b/one")));
    MUST(unlink(guest_path(path, "deep/a/b/two")));

    /* Directories that were removed: a working directory, two descriptions of it, and another process in it. */
    MUST(mkdir(guest_path(path, "deep/here"), 0750));
    MUST(mkdir(guest_path(path, "deep/there"), 0711));
    MUST(chdir(guest_path(path, "deep/here")));
    int here = MUST(open(".", O_RDONLY | O_DIRECTORY)), named = MUST(open(".", O_PATH));
    int there = MUST(open(guest_path(path, "deep/there"), O_RDONLY | O_DIRECTORY));
    MUST(rmdir(guest_path(path, "deep/here")));
    MUST(rmdir(guest_path(path, "deep/there")));
    pid_t child = MUST(fork());
    if (child == 0) {
        while (!guest_finishing()) guest_sleep_ms(5);
        int dot = open(".", O_PATH);
        struct stat stat;
        _exit(dot >= 0 && same(dot, here) && fstat(dot, &stat) == 0 && stat.st_nlink == 0 ? 0 : 1);
    }

    /* Modes of writing. */
    int direct = open(guest_path(path, "direct"), O_RDWR | O_CREAT | O_DIRECT, 0600);
    void *block = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(block, 'd', PAGE);
    if (direct < 0) guest_skip("direct", "%s", strerror(errno));
    else MUST(pwrite(direct, block, PAGE, 0));
    int append = put("append", O_WRONLY | O_APPEND, "");

    /* Seals. */
    int all = memory("all", 'a'), future = memory("future", 'f'), open_end = memory("open end", 'o');
    unsigned char *in_future = map(future, PROT_READ | PROT_WRITE);
    MUST(fcntl(all, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL));
    MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW));
    MUST(fcntl(open_end, F_ADD_SEALS, F_SEAL_WRITE));
    /* Not every kernel lets a sealed file be mapped like this. */
    unsigned char *in_all = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, all, 0);
    unsigned char *private = MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, all, 0));
    private[1] = 'p';

    guest_ready();
    uint64_t appended = 0;
    while (!guest_finishing()) {
        appended++;
        MUST(write(append, &appended, sizeof appended));
        MUST(write(far, &appended, sizeof appended));
        MUST(pwrite(near, &appended, sizeof appended, 8));
        in_future[PAGE + 5] = (unsigned char)appended;
        guest_step();
        guest_sleep_ms(2);
    }

    check_name_only(p_plain, S_IFREG, 0);
    check_name_only(p_link, S_IFLNK, O_NOFOLLOW);
    check_name_only(p_fifo, S_IFIFO, 0);
    check_name_only(p_dir, S_IFDIR, O_DIRECTORY);
    check_name_only(p_socket, S_IFSOCK, 0);
    check_name_only(p_device, S_IFCHR, 0);
    check_name_only(p_gone, S_IFREG, 0);
    check_text(p_plain, "plain");
    check_text(p_gone, "gone");
    struct stat stat;
    MUST(fstat(p_gone, &stat));
    CHECK(stat.st_nlink == 0 && (stat.st_mode & 07777) == 0640, "gone: %lu links, mode %o", stat.st_nlink, stat.st_mode);
    MUST(fstat(p_device, &stat));
    CHECK(stat.st_rdev == makedev(1, 3), "the device");

    uint64_t number = 0;
    int uno = MUST(open(guest_path(path, "deep/a/near/uno"), O_RDONLY));
    CHECK(same(near, uno), "the file and its other name are not one any more");
    CHECK(pread(near, &number, sizeof number, 8) == 8 && number == appended, "near: %lu for %lu", number, appended);
    char text[4];
    CHECK(pread(far, text, 3, 0) == 3 && memcmp(text, "far", 3) == 0, "far");
    for (uint64_t i = 1; i <= appended; i++)
        CHECK(pread(far, &number, 8, (off_t)(3 + 8 * (i - 1))) == 8 && number == i, "far: %lu for %lu", number, i);
    CHECK(fcntl(far, F_GETFL) & O_APPEND && lseek(far, 0, SEEK_CUR) == (off_t)(3 + 8 * appended), "far: offset");

    int dot = MUST(open(".", O_PATH));
    MUST(fstat(here, &stat));
    CHECK(stat.st_nlink == 0 && (stat.st_mode & 07777) == 0750 && S_ISDIR(stat.st_mode), "here: mode %o", stat.st_mode);
    CHECK(same(dot, here) && same(dot, named) && !same(dot, there), "the removed directories are others");
    CHECK(openat(here, "new", O_CREAT | O_RDWR, 0600) == -1 && errno == ENOENT, "a file in a removed directory");
    MUST(fstat(there, &stat));
    CHECK(stat.st_nlink == 0 && (stat.st_mode & 07777) == 0711, "there: mode %o", stat.st_mode);
    CHECK(!getcwd(path, sizeof path) && errno == ENOENT, "the working directory has the name %s", path);
    CHECK(faccessat(AT_FDCWD, "../a/b", F_OK, 0) == 0, "what is above the removed directory");
    char shown[PATH_MAX];
    CHECK(readlink("/proc/self/cwd", shown, sizeof shown) > 0, "/proc/self/cwd");
    snprintf(path, sizeof path, "%s/deep/here (deleted)", guest_dir);
    CHECK(strncmp(shown, path, strlen(path)) == 0, "/proc/self/cwd is not %s", path);
    CHECK((fcntl(named, F_GETFL) & O_PATH) && !(fcntl(here, F_GETFL) & O_PATH), "flags of removed directories");
    int status;
    MUST(waitpid(child, &status, 0));
    CHECK(status == 0, "the child's working directory: %x", status);

    if (direct >= 0) {
        memset(block, 0, PAGE);
        CHECK(fcntl(direct, F_GETFL) & O_DIRECT, "O_DIRECT is lost");
        CHECK(pread(direct, block, PAGE, 0) == (ssize_t)PAGE && ((char *)block)[PAGE - 1] == 'd', "reading directly");
    }
    int reader = MUST(open(guest_path(path, "append"), O_RDONLY));
    for (uint64_t i = 1; i <= appended; i++) CHECK(read(reader, &number, 8) == 8 && number == i, "appended %lu for %lu", number, i);
    CHECK(read(reader, &number, 8) == 0 && (fcntl(append, F_GETFL) & O_APPEND), "appended more");

    CHECK(fcntl(all, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL), "seals %x", fcntl(all, F_GET_SEALS));
    CHECK(fcntl(future, F_GET_SEALS) == (F_SEAL_FUTURE_WRITE | F_SEAL_GROW), "seals %x", fcntl(future, F_GET_SEALS));
    CHECK(fcntl(open_end, F_GET_SEALS) == F_SEAL_WRITE, "seals %x", fcntl(open_end, F_GET_SEALS));
    CHECK(fcntl(all, F_ADD_SEALS, 0) == -1 && errno == EPERM, "the last seal is broken");
    CHECK(fcntl(open_end, F_ADD_SEALS, F_SEAL_GROW) == 0, "no seal can be added");
    CHECK(pwrite(all, "x", 1, 0) == -1 && errno == EPERM, "the seal against writing");
    CHECK(fails(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, all, 0)), "a sealed file was mapped");
    CHECK(fails(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0)), "a sealed file was mapped");
    CHECK(pwrite(future, "x", 1, 0) == -1 && errno == EPERM, "the seal against writing in future");
    CHECK(in_future[0] == 'f' && in_future[PAGE + 5] == (unsigned char)appended, "the mapping from before the seal");
    CHECK(pread(future, text, 1, (off_t)PAGE + 5) == 1 && (unsigned char)text[0] == (unsigned char)appended, "its file");
    if (in_all != MAP_FAILED) {
        CHECK(in_all[0] == 'a' && in_all[3 * PAGE] == 'a', "the mapping of the sealed file");
        CHECK(mprotect(in_all, PAGE, PROT_READ | PROT_WRITE) != 0, "the sealed mapping can be written to");
    }
    CHECK(private[0] == 'a' && private[1] == 'p', "the private mapping");
    guest_ok();
}
