/* The long line of the benchmarks: a TCP relay that delays and has a rate.
 *
 *   relay HOST TARGET_HOST TARGET_PORT DELAY_US MBIT [PORT]
 *
 * Listens on HOST (PORT, or a free one, which it prints) and carries each connection to
 * the target. Every byte takes DELAY_US each way, and each direction carries MBIT
 * megabits/s, all connections together; MBIT 0 means any amount. A line that is full
 * queues ROUTER_NS and then slows its sender. Bytes come in order and none is lost: it
 * is distance that is measured, not a bad network. Goes when its parent goes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    RING_BYTES = 64 << 20, /* more than any line here holds; touched only when used */
    MARKS = 1 << 15,
    PIECE_BYTES = 64 << 10, /* read at once; 0.5 ms of a line with 1 Gbit/s */
    ROUTER_NS = 20000000,
    MAX_WIRES = 4096,
    LIFE_S = 7200,
    BACKLOG = 4096,
};

struct mark {
    uint64_t due, end; /* bytes before END of the stream may go at DUE */
};

/* One direction of one connection. Offsets count from the start of the stream. */
struct way {
    int from, to;
    char *ring;
    uint64_t read, due, sent;
    struct mark *marks;
    unsigned head, tail;
    bool ended, shut;
    uint64_t end_due;
    uint64_t *line_free; /* when the line has carried what it was given */
};

struct wire {
    struct way ways[2];
};

static uint64_t delay_ns, line_free[2];
static double ns_per_byte;
static struct wire *wires[MAX_WIRES];
static unsigned count;

__attribute__((noreturn, format(printf, 1, 2))) static void
fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("relay: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static struct sockaddr_in
address(const char *host, int port)
{
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &found.sin_addr) != 1)
        fail("%s is no IPv4 address", host);
    return found;
}

static bool
would_block(void)
{
    return errno == EAGAIN || errno == EINTR;
}

static bool
has_room(const struct way *way, uint64_t now)
{
    return !way->ended && way->read - way->sent <= RING_BYTES - PIECE_BYTES
        && way->tail - way->head < MARKS && *way->line_free <= now + ROUTER_NS;
}

/* Each of the following returns false when the connection is broken. */

static bool
take(struct way *way, uint64_t now)
{
    size_t at = way->read % RING_BYTES, size = RING_BYTES - at;
    size = size < PIECE_BYTES ? size : PIECE_BYTES;
    ssize_t got = recv(way->from, way->ring + at, size, MSG_DONTWAIT);
    if (got < 0)
        return would_block();
    uint64_t *line = way->line_free;
    *line = (*line > now ? *line : now) + (uint64_t)((double)got * ns_per_byte);
    if (got == 0) {
        way->ended = true;
        way->end_due = *line + delay_ns;
        return true;
    }
    way->read += (uint64_t)got;
    way->marks[way->tail++ % MARKS] = (struct mark){*line + delay_ns, way->read};
    return true;
}

static bool
deliver(struct way *way, uint64_t now)
{
    while (way->head != way->tail && way->marks[way->head % MARKS].due <= now)
        way->due = way->marks[way->head++ % MARKS].end;
    while (way->sent < way->due) {
        size_t at = way->sent % RING_BYTES, size = RING_BYTES - at;
        size = size < way->due - way->sent ? size : way->due - way->sent;
        ssize_t sent = send(way->to, way->ring + at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return would_block();
        way->sent += (uint64_t)sent;
    }
    if (way->ended && !way->shut && way->sent == way->read && way->end_due <= now) {
        way->shut = true;
        shutdown(way->to, SHUT_WR);
    }
    return true;
}

/* When this way needs a turn that no socket announces. */
static uint64_t
next_due(const struct way *way, uint64_t now)
{
    if (way->head != way->tail && way->sent == way->due)
        return way->marks[way->head % MARKS].due;
    if (way->ended && !way->shut && way->sent == way->read)
        return way->end_due;
    if (!way->ended && *way->line_free > now + ROUTER_NS)
        return *way->line_free - ROUTER_NS;
    return UINT64_MAX;
}

static void *
some(size_t size)
{
    void *found = malloc(size);
    if (!found)
        fail("no memory");
    return found;
}

static void
tune(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void
accept_one(int listener, const struct sockaddr_in *target)
{
    int near = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (near < 0)
        return;
    int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (count == MAX_WIRES || far < 0
        || connect(far, (const struct sockaddr *)target, sizeof *target) < 0) {
        close(near);
        if (far >= 0)
            close(far);
        return;
    }
    tune(near);
    tune(far);
    struct wire *wire = some(sizeof *wire);
    for (int i = 0; i < 2; i++)
        wire->ways[i] = (struct way){
            .from = i ? far : near,
            .to = i ? near : far,
            .ring = some(RING_BYTES),
            .marks = some(MARKS * sizeof(struct mark)),
            .line_free = &line_free[i],
        };
    wires[count++] = wire;
}

static void
forget(unsigned index)
{
    struct wire *wire = wires[index];
    close(wire->ways[0].from);
    close(wire->ways[0].to);
    for (int i = 0; i < 2; i++) {
        free(wire->ways[i].ring);
        free(wire->ways[i].marks);
    }
    free(wire);
    wires[index] = wires[--count];
}

/* Give a wire its turn; returns false when it is over. */
static bool
turn(struct wire *wire, const struct pollfd *polled, uint64_t now)
{
    for (int i = 0; i < 2; i++) {
        struct way *way = &wire->ways[i];
        short events = polled[i].revents;
        if (events & (POLLIN | POLLHUP | POLLERR) && has_room(way, now)
            && !take(way, now))
            return false;
        if (!deliver(way, now))
            return false;
    }
    return !(wire->ways[0].shut && wire->ways[1].shut);
}

/* Which events a socket is waited for: POLLIN feeds one way, POLLOUT the other. */
static struct pollfd
waiting(const struct way *in, const struct way *out, uint64_t now)
{
    short events = has_room(in, now) ? POLLIN : 0;
    if (out->sent < out->due)
        events |= POLLOUT;
    /* a socket with nothing to wait for would report POLLHUP for ever */
    return (struct pollfd){.fd = events ? in->from : -1, .events = events};
}

static void
carry(int listener, const struct sockaddr_in *target)
{
    static struct pollfd polled[1 + 2 * MAX_WIRES];
    for (;;) {
        uint64_t now = now_ns(), next = UINT64_MAX;
        polled[0] = (struct pollfd){.fd = listener, .events = POLLIN};
        for (unsigned i = 0; i < count; i++) {
            struct way *ways = wires[i]->ways;
            for (int j = 0; j < 2; j++) {
                polled[1 + 2 * i + j] = waiting(&ways[j], &ways[!j], now);
                uint64_t due = next_due(&ways[j], now);
                next = due < next ? due : next;
            }
        }
        uint64_t wait = next <= now ? 0 : next - now;
        struct timespec limit = {(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
        if (ppoll(polled, 1 + 2 * count, next == UINT64_MAX ? NULL : &limit, NULL) < 0
            && !would_block())
            fail("poll: %s", strerror(errno));
        now = now_ns();
        /* from the end: a wire that goes is replaced by the last, which had its turn */
        for (unsigned i = count; i--;)
            if (!turn(wires[i], &polled[1 + 2 * i], now))
                forget(i);
        if (polled[0].revents & POLLIN)
            accept_one(listener, target);
    }
}

int
main(int argc, char **argv)
{
    if (argc < 6)
        fail("usage: relay HOST TARGET_HOST TARGET_PORT DELAY_US MBIT [PORT]");
    struct sockaddr_in near = address(argv[1], argc > 6 ? atoi(argv[6]) : 0);
    struct sockaddr_in target = address(argv[2], atoi(argv[3]));
    delay_ns = strtoull(argv[4], NULL, 10) * 1000;
    double mbit = atof(argv[5]);
    ns_per_byte = mbit > 0 ? 8000.0 / mbit : 0;
    socklen_t length = sizeof near;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&near, length) < 0
        || listen(listener, BACKLOG) < 0
        || getsockname(listener, (struct sockaddr *)&near, &length) < 0)
        fail("listen on %s: %s", argv[1], strerror(errno));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(LIFE_S);
    printf("%u\n", ntohs(near.sin_port));
    fflush(stdout);
    carry(listener, &target);
}
