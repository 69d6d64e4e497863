/*
 * A client of somebody outside of the job: `external DIR PATH` or `external DIR @ABSTRACT`.
 *
 * It is connected all the time, and talks only when it is told to: on "go.N" it sends N and expects it back, and says so by
 * DIR/say.N. On "go.7" it does not read the answer until "go.8"; on "go.10" it closes its connection.
 *
 * With `--listen` it is the other way round: it listens there, on "go.1" accepts a client, and never talks.
 */
#include "guest.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static int server;

static void hear(uint64_t expected) {
    uint64_t got = 0;
    ssize_t length = read(server, &got, sizeof got);
    CHECK(length == sizeof got && got == expected, "%zd bytes, %lu instead of %lu (%s)", length, got, expected, strerror(errno));
}

static void serve(struct sockaddr *at, socklen_t length) {
    MUST(bind(server, at, length));
    MUST(listen(server, 5));
    guest_ready();
    for (bool accepted = false; !guest_finishing();) {
        if (!accepted && guest_has("go.1")) {
            MUST(accept(server, NULL, NULL));
            guest_link("say.1", "done");
            accepted = true;
        }
        guest_step();
        guest_sleep_ms(2);
    }
    guest_ok();
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    CHECK(argc > 2, "connected to whom?");
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, argv[2], sizeof at.sun_path - 1);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(at.sun_path));
    if (at.sun_path[0] == '@') at.sun_path[0] = 0;
    server = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (guest_option(argc, argv, "listen", 0)) serve((struct sockaddr *)&at, length);
    MUST(connect(server, (struct sockaddr *)&at, length));
    int twin = MUST(dup(server));
    guest_ready();
    for (uint64_t next = 1; !guest_finishing();) {
        char name[32];
        snprintf(name, sizeof name, "go.%lu", next);
        if (guest_has(name)) {
            if (next == 10) {
                MUST(close(server));
                MUST(close(twin));
                server = -1;
            } else {
                if (next != 8) MUST(write(server, &next, sizeof next));
                if (next != 7) hear(next == 8 ? 7 : next);
            }
            snprintf(name, sizeof name, "say.%lu", next++);
            guest_link(name, "done");
        }
        guest_step();
        guest_sleep_ms(2);
    }
    if (server < 0) guest_ok();
    CHECK(fcntl(server, F_GETFD) == FD_CLOEXEC && fcntl(twin, F_GETFD) == 0, "the descriptors' flags");
    uint64_t last = 99;
    MUST(write(twin, &last, sizeof last));
    hear(last);
    guest_ok();
}
