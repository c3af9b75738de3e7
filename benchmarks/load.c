/* The load program of the benchmarks: one target and its clients, loopback only.
 *
 *   load sink-source PORT        the target; PORT 0 takes a free one; prints it
 *   load get   PORT BYTES STREAMS  BYTES on each of STREAMS towards the client
 *   load put   PORT BYTES STREAMS  the same towards the target
 *   load fetch PORT BYTES MS     connect, get BYTES, close, one after another
 *   load start PORT MS           one endless stream: what its first MS carry
 *   load echo  PORT MS           64 bytes there and back on one connection
 *   load rr    PORT MS CONNS     the same on CONNS connections at once
 *   load cps   PORT MS PARALLEL  connect, 64 bytes there and back, close
 *   load hold  PORT CONNS        CONNS connections with nothing to say, until stdin ends
 *   load web   PORT MS CONNS BYTES  GET answers of BYTES, on CONNS kept connections
 *   load ws    PORT MS           as echo, on a connection that was upgraded
 *   load web-hold PORT CONNS     as hold: each was answered once, and is kept alive
 *   load ws-hold  PORT CONNS     as hold: each was upgraded
 *   load first PORT MS           connect, 64 bytes there and back, close, one by one
 *   load via socks5|connect TARGET ...  the same to port TARGET, through the SOCKS5 or
 *                                HTTP proxy at PORT
 *   load udp-target PORT         the target of datagrams: all are sent back
 *   load udp-echo  PORT MS       64 bytes there and back in one flow
 *   load udp-flows PORT MS FLOWS the same in FLOWS flows at once
 *   load udp-flood PORT MS RATE BYTES  RATE datagrams a second of BYTES: what comes back
 *
 * MS is how long it measures, in milliseconds. rr and hold open their connections
 * before the clock starts, a few at a time, and each has echoed once by then.
 *
 * The first byte of a connection says what the target does with it: 'G' and a u64
 * (big endian) asks for that many bytes; 'P' and a u64 brings that many, and their count
 * comes back when all are there; 'E' sends back all that follows; "GET " is HTTP/1.1
 * that is kept: the path says how many bytes come back, and after an upgrade all of it
 * is sent back (the bytes of a WebSocket, whose frames no peer looks into). Nothing
 * waits for the end of a stream: some peers cannot end one direction, or end it at once.
 *
 * A client prints one JSON line, or a line on stderr and exit status 1. MB is 10^6
 * bytes. Every mode has an end: an alarm stops a client that hangs, and the target goes
 * when its parent goes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNK_BYTES = 256 * 1024,
    MESSAGE_BYTES = 64,
    EVENTS = 256,
    MAX_CONNS = 16384,
    BACKLOG = 4096,
    OPENING = 32, /* connections that rr and hold open at a time */
    MAX_MS = 60000,
    SPARE_S = 90,          /* what a client may take beyond its measuring time */
    SERVER_LIFE_S = 7200,
    WARM_UP = 200,         /* echoes before the first one that counts */
    MAX_SAMPLES = 1 << 24, /* 60 s at 4 us; pages are touched only when used */
    HEAD_BYTES = 2048,     /* of an HTTP message: those here have a tenth of it */
    AT_ONCE_BYTES = 16384, /* an answer's body up to this leaves with its head */
    DIALOGUE_BYTES = 512,  /* of a proxy's answer: those here have a tenth of it */
    DATAGRAM_BYTES = 1500,
    DATAGRAMS = 64,             /* taken or sent by one call */
    KERNEL_BYTES = 8 << 20,     /* so that no datagram is lost before this program */
    LOST_MS = 500,              /* a datagram that is not back by then is lost */
    MAX_FLOWS = 1024,
    MAX_RATE = 1000000,
};

#define HOST "bench.test" /* the name under which the peers publish the target */

static char chunk[CHUNK_BYTES];

__attribute__((noreturn, format(printf, 1, 2))) static void
fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void
on_alarm(int number)
{
    static const char text[] = "load: did not end in time\n";
    (void)number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(2);
    _exit(1);
}

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t
number(const char *text, uint64_t low, uint64_t high)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value < low || value > high)
        fail("%s is not a number from %" PRIu64 " to %" PRIu64, text, low, high);
    return value;
}

static struct sockaddr_in
loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
}

static void
no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static bool
would_block(void)
{
    return errno == EAGAIN || errno == EINTR;
}

/* Take as many descriptors as are allowed: 10,000 connections need them. */
static void
all_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void
watch(int epoll, int operation, int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

/* ---- the target ---------------------------------------------------------------- */

enum mode { FIRST, ASKED, SOURCE, ENDED, TOLD, SINK, ECHO, WEB, WEB_SOURCE };

struct served {
    int fd;
    enum mode mode;
    uint64_t count;       /* a SOURCE: still to send; SINK: still to come */
    uint64_t told;        /* SINK: how many it was told of */
    unsigned header_used; /* ASKED, TOLD: bytes of the number that came */
    unsigned char header[8];
    char *pending; /* ECHO: what the socket did not take yet */
    size_t pending_start, pending_end;
};

static void
forget(struct served *conn)
{
    close(conn->fd);
    free(conn->pending);
    free(conn);
}

/* Each of the following returns false when the connection is over. */

static bool
send_source(int epoll, struct served *conn)
{
    size_t size = conn->count < CHUNK_BYTES ? conn->count : CHUNK_BYTES;
    ssize_t sent = size ? send(conn->fd, chunk, size, MSG_NOSIGNAL) : 0;
    if (sent < 0)
        return would_block();
    conn->count -= (uint64_t)sent;
    if (conn->count)
        return true; /* one chunk a turn: the echoes beside it get theirs */
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLIN, conn);
    if (conn->mode == WEB_SOURCE) {
        conn->mode = WEB;
        return true;
    }
    conn->mode = ENDED;
    return shutdown(conn->fd, SHUT_WR) == 0;
}

static bool
send_pending(int epoll, struct served *conn)
{
    ssize_t sent = send(conn->fd, conn->pending + conn->pending_start,
                        conn->pending_end - conn->pending_start, MSG_NOSIGNAL);
    if (sent < 0)
        return would_block();
    conn->pending_start += (size_t)sent;
    if (conn->pending_start < conn->pending_end)
        return true;
    free(conn->pending);
    conn->pending = NULL;
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLIN, conn);
    return true;
}

static bool
echo(int epoll, struct served *conn, const char *data, size_t size)
{
    ssize_t sent = size ? send(conn->fd, data, size, MSG_NOSIGNAL) : 0;
    if (sent < 0 && !would_block())
        return false;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    if (taken == size)
        return true;
    conn->pending = malloc(size - taken);
    if (!conn->pending)
        fail("no memory");
    memcpy(conn->pending, data + taken, size - taken);
    conn->pending_start = 0;
    conn->pending_end = size - taken;
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLOUT, conn);
    return true;
}

static bool
swallow(struct served *conn, size_t size)
{
    if (size > conn->count)
        return false;
    conn->count -= size;
    if (conn->count)
        return true;
    uint64_t answer = htobe64(conn->told);
    return send(conn->fd, &answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer;
}

static bool
take_request(int epoll, struct served *conn, const char *data, size_t size)
{
    for (; size && conn->header_used < sizeof conn->header; size--)
        conn->header[conn->header_used++] = (unsigned char)*data++;
    if (conn->header_used < sizeof conn->header)
        return true;
    memcpy(&conn->count, conn->header, sizeof conn->count);
    conn->count = conn->told = be64toh(conn->count);
    if (conn->mode == TOLD) {
        conn->mode = SINK;
        return swallow(conn, size);
    }
    conn->mode = SOURCE;
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLOUT, conn);
    return true;
}

static bool
send_whole(int fd, const char *data, size_t size, int flags)
{
    return send(fd, data, size, MSG_NOSIGNAL | flags) == (ssize_t)size;
}

/* Answer a request, whose head comes in one piece: every peer writes it in one. */
static bool
take_web(int epoll, struct served *conn, const char *data, size_t size)
{
    static const char switched[] = "HTTP/1.1 101 Switching Protocols\r\n"
                                   "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    char text[HEAD_BYTES + AT_ONCE_BYTES], *end;
    if (size < 4 || size >= HEAD_BYTES || memcmp(data, "GET /", 5)
        || memcmp(data + size - 4, "\r\n\r\n", 4))
        return false;
    memcpy(text, data, size);
    text[size] = 0;
    if (strcasestr(text, "\r\nupgrade: websocket\r\n")) {
        conn->mode = ECHO;
        return send_whole(conn->fd, switched, sizeof switched - 1, 0);
    }
    conn->count = strtoull(text + 5, &end, 10);
    if (*end != ' ')
        return false;
    int head = snprintf(text, HEAD_BYTES,
                        "HTTP/1.1 200 OK\r\nServer: load\r\n"
                        "Content-Type: application/octet-stream\r\n"
                        "Cache-Control: no-cache\r\nContent-Length: %" PRIu64
                        "\r\n\r\n",
                        conn->count);
    if (conn->count <= AT_ONCE_BYTES) {
        memcpy(text + head, chunk, conn->count);
        return send_whole(conn->fd, text, (size_t)head + conn->count, 0);
    }
    conn->mode = WEB_SOURCE;
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLOUT, conn);
    return send_whole(conn->fd, text, (size_t)head, MSG_MORE);
}

static bool
take(int epoll, struct served *conn, const char *data, size_t size)
{
    if (conn->mode == FIRST && size > 4 && !memcmp(data, "GET ", 4))
        conn->mode = WEB;
    if (conn->mode == FIRST) {
        switch (*data) {
        case 'G': conn->mode = ASKED; break;
        case 'P': conn->mode = TOLD; break;
        case 'E': conn->mode = ECHO; break;
        default: return false;
        }
        data++;
        size--;
    }
    switch (conn->mode) {
    case ASKED:
    case TOLD: return take_request(epoll, conn, data, size);
    case ECHO: return echo(epoll, conn, data, size);
    case SINK: return swallow(conn, size);
    case WEB: return take_web(epoll, conn, data, size);
    default: return false;
    }
}

static bool
serve_one(int epoll, struct served *conn, char *buffer)
{
    if (conn->mode == SOURCE || conn->mode == WEB_SOURCE)
        return send_source(epoll, conn);
    if (conn->pending)
        return send_pending(epoll, conn);
    ssize_t size = recv(conn->fd, buffer, CHUNK_BYTES, 0);
    if (size < 0)
        return would_block();
    return size > 0 && take(epoll, conn, buffer, (size_t)size);
}

static void
accept_all(int epoll, int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (would_block() || errno == ECONNABORTED))
            return;
        if (fd < 0)
            fail("accept: %s", strerror(errno));
        no_delay(fd);
        struct served *conn = calloc(1, sizeof *conn);
        if (!conn)
            fail("no memory");
        conn->fd = fd;
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, conn);
    }
}

static void
sink_source(uint16_t port)
{
    static char buffer[CHUNK_BYTES];
    struct sockaddr_in address = loopback(port);
    socklen_t length = sizeof address;
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) < 0
        || listen(listener, BACKLOG) < 0
        || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen on 127.0.0.1:%u: %s", port, strerror(errno));
    for (size_t i = 0; i < sizeof chunk; i++)
        chunk[i] = (char)(i * 2654435761u >> 13);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(SERVER_LIFE_S);
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct served *conn = events[i].data.ptr;
            if (!conn)
                accept_all(epoll, listener);
            else if (!serve_one(epoll, conn, buffer))
                forget(conn);
        }
    }
}

/* ---- the clients --------------------------------------------------------------- */

/* Connecting blocks: the other end is loopback, and its backlog is never full here. */
static int
dial_port(uint16_t port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect to 127.0.0.1:%u: %s", port, strerror(errno));
    no_delay(fd);
    return fd;
}

static void
send_small(int fd, const void *data, size_t size)
{
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent != (ssize_t)size)
        fail("sending %zu bytes: %s", size, sent < 0 ? strerror(errno) : "cut short");
}

/* What the port of the clients is: the target, or a proxy that leads to `behind`. */
static enum { NO_PROXY, SOCKS5, CONNECT } proxy;
static uint16_t behind;

struct dialogue {
    unsigned step; /* 1, SOCKS5: the greeting; 2: the request, the only one of HTTP */
    size_t used;
    char came[DIALOGUE_BYTES];
};

static void
say_next(int fd, struct dialogue *talk)
{
    char text[DIALOGUE_BYTES];
    unsigned char request[] = {5, 1, 0, 1, 127, 0, 0, 1, behind >> 8, behind & 255};
    talk->used = 0;
    talk->step = talk->step || proxy == CONNECT ? 2 : 1;
    if (talk->step == 1)
        send_small(fd, "\5\1", 3); /* one method: no login */
    else if (proxy == SOCKS5)
        send_small(fd, request, sizeof request);
    else
        send_small(fd, text,
                   (size_t)snprintf(text, sizeof text,
                                    "CONNECT 127.0.0.1:%u HTTP/1.1\r\n"
                                    "Host: 127.0.0.1:%u\r\n\r\n",
                                    behind, behind));
}

static bool
is_whole(const struct dialogue *talk)
{
    const unsigned char *came = (const unsigned char *)talk->came;
    if (proxy == CONNECT) {
        if (!strstr(talk->came, "\r\n\r\n"))
            return false;
        if (strncmp(talk->came + sizeof "HTTP/1.1", "200", 3))
            fail("proxy: %.*s", (int)strcspn(talk->came, "\r"), talk->came);
        return true;
    }
    if (talk->used < 2)
        return false;
    if (came[0] != 5 || came[1])
        fail("proxy: SOCKS %u says %u", came[0], came[1]);
    if (talk->step == 1)
        return true;
    if (talk->used < 5)
        return false;
    return talk->used >= (came[3] == 1 ? 10u : came[3] == 4 ? 22u : 7u + came[4]);
}

/* Take what a proxy says; return true when it has reached the target. */
static bool
hear_proxy(int fd, struct dialogue *talk)
{
    ssize_t size = recv(fd, talk->came + talk->used,
                        sizeof talk->came - talk->used - 1, 0);
    if (size < 0 && would_block())
        return false;
    if (size <= 0)
        fail("proxy: %s", size ? strerror(errno) : "end of stream, or a long answer");
    talk->used += (size_t)size;
    talk->came[talk->used] = 0;
    if (!is_whole(talk))
        return false;
    if (talk->step == 2)
        return true;
    say_next(fd, talk);
    return false;
}

/* Return a connection to the target. */
static int
dial(uint16_t port, bool block)
{
    int fd = dial_port(port);
    if (proxy) {
        struct dialogue talk = {0};
        say_next(fd, &talk);
        while (!hear_proxy(fd, &talk))
            ;
    }
    if (!block && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        fail("fcntl: %s", strerror(errno));
    return fd;
}

struct bulk {
    int fd;
    uint64_t left;
    unsigned char answer[8];
    unsigned answer_used;
};

/* Returns false when all bytes came. */
static bool
pull(struct bulk *stream)
{
    ssize_t size = recv(stream->fd, chunk, sizeof chunk, 0);
    if (size < 0 && would_block())
        return true;
    if (size < 0)
        fail("get, %" PRIu64 " bytes before the end: %s", stream->left, strerror(errno));
    if (size == 0)
        fail("get: ended %" PRIu64 " bytes early", stream->left);
    if ((uint64_t)size > stream->left)
        fail("get: more bytes than were asked for");
    stream->left -= (uint64_t)size;
    return stream->left > 0;
}

/* Returns false when the target has confirmed the count. */
static bool
push(int epoll, struct bulk *stream, uint64_t bytes)
{
    if (stream->left) {
        size_t size = stream->left < sizeof chunk ? stream->left : sizeof chunk;
        ssize_t sent = send(stream->fd, chunk, size, MSG_NOSIGNAL);
        if (sent < 0 && would_block())
            return true;
        if (sent < 0)
            fail("put, %" PRIu64 " bytes before the end: %s", stream->left,
                 strerror(errno));
        stream->left -= (uint64_t)sent;
        if (!stream->left)
            watch(epoll, EPOLL_CTL_MOD, stream->fd, EPOLLIN, stream);
        return true;
    }
    ssize_t size = recv(stream->fd, stream->answer + stream->answer_used,
                        sizeof stream->answer - stream->answer_used, 0);
    if (size < 0 && would_block())
        return true;
    if (size <= 0)
        fail("put: no count came back: %s", size ? strerror(errno) : "end of stream");
    stream->answer_used += (unsigned)size;
    if (stream->answer_used < sizeof stream->answer)
        return true;
    uint64_t count;
    memcpy(&count, stream->answer, sizeof count);
    if (be64toh(count) != bytes)
        fail("put: %" PRIu64 " bytes arrived of %" PRIu64, be64toh(count), bytes);
    return false;
}

static void
bulk(bool get, uint16_t port, uint64_t bytes, unsigned streams)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct bulk *all = calloc(streams, sizeof *all);
    if (!all)
        fail("no memory");
    for (unsigned i = 0; i < streams; i++) {
        all[i] = (struct bulk){.fd = dial(port, false), .left = bytes};
        watch(epoll, EPOLL_CTL_ADD, all[i].fd, get ? EPOLLIN : EPOLLOUT, &all[i]);
    }
    uint64_t start = now_ns();
    for (unsigned i = 0; i < streams; i++) {
        unsigned char request[9] = {get ? 'G' : 'P'};
        uint64_t count = htobe64(bytes);
        memcpy(request + 1, &count, sizeof count);
        send_small(all[i].fd, request, sizeof request);
    }
    for (unsigned open = streams; open;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct bulk *stream = events[i].data.ptr;
            if (get ? pull(stream) : push(epoll, stream, bytes))
                continue;
            close(stream->fd);
            open--;
        }
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"bytes\": %" PRIu64 ", \"streams\": %u, \"seconds\": %.6f, "
           "\"mb_per_s\": %.3f}\n",
           bytes * streams, streams, seconds, (double)bytes * streams / seconds / 1e6);
}

/* Ask for so many bytes on a new connection. */
static int
request_bytes(uint16_t port, uint64_t bytes)
{
    unsigned char request[9] = {'G'};
    uint64_t count = htobe64(bytes);
    memcpy(request + 1, &count, sizeof count);
    int fd = dial(port, true);
    send_small(fd, request, sizeof request);
    return fd;
}

static void
fetch(uint16_t port, uint64_t bytes, unsigned ms)
{
    uint64_t count = 0, start = now_ns(), end = start + ms * UINT64_C(1000000);
    uint64_t now = start;
    for (; now < end; now = now_ns()) {
        struct bulk stream = {.fd = request_bytes(port, bytes), .left = bytes};
        while (pull(&stream))
            ;
        close(stream.fd);
        count++;
    }
    double seconds = (double)(now - start) / 1e9;
    printf("{\"count\": %" PRIu64 ", \"per_s\": %.3f, \"mb_per_s\": %.3f}\n", count,
           (double)count / seconds, (double)(count * bytes) / seconds / 1e6);
}

/* What one stream carries from its request on, and in the last second of that time. */
static void
start_of_stream(uint16_t port, unsigned ms)
{
    uint64_t start = now_ns(), end = start + ms * UINT64_C(1000000);
    uint64_t last = end - UINT64_C(1000000000), bytes = 0, late = 0;
    struct pollfd stream = {.fd = request_bytes(port, UINT64_C(1) << 50)};
    stream.events = POLLIN;
    for (uint64_t now; (now = now_ns()) < end;) {
        if (poll(&stream, 1, (int)((end - now) / 1000000)) <= 0)
            continue;
        ssize_t size = recv(stream.fd, chunk, sizeof chunk, 0);
        if (size <= 0)
            fail("start: %s", size ? strerror(errno) : "end of stream");
        bytes += (uint64_t)size;
        late += now >= last ? (uint64_t)size : 0;
    }
    printf("{\"mb_per_s\": %.3f, \"last_mb_per_s\": %.3f}\n",
           (double)bytes / ms / 1e3, (double)late / 1e6);
}

static int
compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void
exchange(int fd, uint64_t sequence)
{
    char sent[MESSAGE_BYTES] = {0}, came[MESSAGE_BYTES];
    memcpy(sent, &sequence, sizeof sequence);
    send_small(fd, sent, sizeof sent);
    for (size_t used = 0; used < sizeof came;) {
        ssize_t size = recv(fd, came + used, sizeof came - used, 0);
        if (size <= 0)
            fail("echo: %s", size ? strerror(errno) : "end of stream");
        used += (size_t)size;
    }
    if (memcmp(sent, came, sizeof sent))
        fail("echo: other bytes came back");
}

/* Call `once` for so long, and tell how long the calls took. */
static void
latency(void (*once)(int, uint64_t), int fd, unsigned ms)
{
    uint32_t *samples = malloc(MAX_SAMPLES * sizeof *samples);
    if (!samples)
        fail("no memory");
    for (uint64_t i = 0; i < WARM_UP; i++)
        once(fd, i);
    uint64_t before = now_ns(), end = before + ms * UINT64_C(1000000);
    size_t count = 0;
    while (before < end && count < MAX_SAMPLES) {
        once(fd, WARM_UP + count);
        uint64_t after = now_ns(), took = after - before;
        samples[count++] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
        before = after;
    }
    qsort(samples, count, sizeof *samples, compare);
    printf("{\"samples\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f}\n",
           count, samples[count / 2] / 1e3, samples[count * 99 / 100] / 1e3,
           samples[count - 1] / 1e3);
}

/* A connection of its own, whose descriptor in `latency` is the port. */
static void
first_exchange(int port, uint64_t sequence)
{
    int fd = dial((uint16_t)port, true);
    send_small(fd, "E", 1);
    exchange(fd, sequence);
    close(fd);
}

struct asker {
    int fd;
    uint64_t sequence;
    size_t used;
    char came[MESSAGE_BYTES];
    bool in_dialogue; /* with a proxy */
    struct dialogue talk;
};

static void
ask(struct asker *asker, bool first)
{
    char request[1 + MESSAGE_BYTES] = {'E'};
    asker->sequence++;
    asker->used = 0;
    memcpy(request + 1, &asker->sequence, sizeof asker->sequence);
    send_small(asker->fd, request + !first, sizeof request - !first);
}

/* Returns true when the whole answer is there. */
static bool
hear(struct asker *asker)
{
    if (asker->in_dialogue) {
        asker->in_dialogue = !hear_proxy(asker->fd, &asker->talk);
        if (!asker->in_dialogue)
            ask(asker, true);
        return false;
    }
    ssize_t size = recv(asker->fd, asker->came + asker->used,
                        sizeof asker->came - asker->used, 0);
    if (size < 0 && would_block())
        return false;
    if (size <= 0)
        fail("request: %s", size ? strerror(errno) : "end of stream");
    asker->used += (size_t)size;
    if (asker->used < sizeof asker->came)
        return false;
    if (memcmp(asker->came, &asker->sequence, sizeof asker->sequence))
        fail("request: the answer of another request came back");
    return true;
}

static void
begin(int epoll, uint16_t port, struct asker *asker)
{
    asker->fd = dial_port(port);
    if (fcntl(asker->fd, F_SETFL, O_NONBLOCK) < 0)
        fail("fcntl: %s", strerror(errno));
    watch(epoll, EPOLL_CTL_ADD, asker->fd, EPOLLIN, asker);
    asker->talk.step = 0;
    asker->in_dialogue = proxy != NO_PROXY;
    if (asker->in_dialogue)
        say_next(asker->fd, &asker->talk);
    else
        ask(asker, true);
}

/* Return CONNS connections that have echoed once, opened a few at a time. */
static struct asker *
open_all(int epoll, uint16_t port, unsigned conns)
{
    struct asker *all = calloc(conns, sizeof *all);
    if (!all)
        fail("no memory");
    unsigned begun = 0, heard = 0;
    while (heard < conns) {
        for (; begun < conns && begun - heard < OPENING; begun++) {
            all[begun].sequence = (uint64_t)begun << 40;
            begin(epoll, port, &all[begun]);
        }
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++)
            heard += hear(events[i].data.ptr);
    }
    return all;
}

/* ---- the same by HTTP ---------------------------------------------------------- */

struct browser {
    int fd;
    size_t used;       /* of an answer's head that is not whole */
    uint64_t left;     /* of its body */
    char head[HEAD_BYTES];
};

static void
ask_web(struct browser *browser, uint64_t bytes, const char *fields)
{
    char text[HEAD_BYTES];
    int size = snprintf(text, sizeof text,
                        "GET /%" PRIu64 " HTTP/1.1\r\nHost: " HOST "\r\n"
                        "User-Agent: load\r\nAccept: */*\r\n%s\r\n",
                        bytes, fields);
    browser->used = 0;
    send_small(browser->fd, text, (size_t)size);
}

/* Take bytes of an answer; return true when its head is whole. The body may begin. */
static bool
hear_head(struct browser *browser, const char *status)
{
    ssize_t size = recv(browser->fd, browser->head + browser->used,
                        sizeof browser->head - browser->used - 1, 0);
    if (size < 0 && would_block())
        return false;
    if (size <= 0)
        fail("request: %s", size ? strerror(errno) : "end of stream, or a long head");
    browser->used += (size_t)size;
    browser->head[browser->used] = 0;
    char *end = strstr(browser->head, "\r\n\r\n");
    if (!end)
        return false;
    if (strncmp(browser->head + sizeof "HTTP/1.1", status, strlen(status)))
        fail("request: %.*s", (int)strcspn(browser->head, "\r"), browser->head);
    size_t body = browser->used - (size_t)(end + 4 - browser->head);
    *end = 0; /* what is said about the length is said in the head */
    char *length = strcasestr(browser->head, "\r\ncontent-length:");
    length = length ? length + sizeof "\r\ncontent-length" : "0";
    browser->left = strtoull(length, NULL, 10);
    if (body > browser->left)
        fail("request: more bytes than the answer said");
    browser->left -= body;
    if (!browser->left)
        browser->used = 0;
    return true;
}

/* Returns true when the whole answer is there. */
static bool
hear_web(struct browser *browser)
{
    if (!browser->left)
        return hear_head(browser, "200 ") && !browser->left;
    size_t most = browser->left < sizeof chunk ? browser->left : sizeof chunk;
    ssize_t size = recv(browser->fd, chunk, most, 0);
    if (size < 0 && would_block())
        return false;
    if (size <= 0)
        fail("request: %s", size ? strerror(errno) : "end of stream in a body");
    browser->left -= (uint64_t)size;
    return !browser->left;
}

static void
web(uint16_t port, unsigned ms, unsigned conns, uint64_t bytes)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct browser *all = calloc(conns, sizeof *all);
    if (!all)
        fail("no memory");
    for (unsigned i = 0; i < conns; i++) {
        all[i].fd = dial(port, true);
        ask_web(&all[i], bytes, "");
        while (!hear_web(&all[i]))
            ;
        if (fcntl(all[i].fd, F_SETFL, O_NONBLOCK) < 0)
            fail("fcntl: %s", strerror(errno));
        watch(epoll, EPOLL_CTL_ADD, all[i].fd, EPOLLIN, &all[i]);
    }
    uint64_t start = now_ns(), count = 0, end = start + ms * UINT64_C(1000000);
    for (unsigned i = 0; i < conns; i++)
        ask_web(&all[i], bytes, "");
    while (now_ns() < end) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 1);
        for (int i = 0; i < ready; i++) {
            if (!hear_web(events[i].data.ptr))
                continue;
            count++;
            ask_web(events[i].data.ptr, bytes, "");
        }
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"count\": %" PRIu64 ", \"per_s\": %.1f, \"mb_per_s\": %.3f}\n", count,
           (double)count / seconds, (double)(count * bytes) / seconds / 1e6);
}

/* Return a connection that has left HTTP. */
static int
upgraded(uint16_t port)
{
    struct browser browser = {.fd = dial(port, true)};
    ask_web(&browser, 0,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    while (!hear_head(&browser, "101 "))
        ;
    exchange(browser.fd, 1);
    return browser.fd;
}

static int
answered(uint16_t port)
{
    struct browser browser = {.fd = dial(port, true)};
    ask_web(&browser, 1, "");
    while (!hear_web(&browser))
        ;
    return browser.fd;
}

static int
echoing(uint16_t port)
{
    int fd = dial(port, true);
    send_small(fd, "E", 1);
    return fd;
}

static void
requests(uint16_t port, unsigned ms, unsigned conns)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct asker *all = open_all(epoll, port, conns);
    uint64_t start = now_ns(), count = 0, end = start + ms * UINT64_C(1000000);
    for (unsigned i = 0; i < conns; i++)
        ask(&all[i], false);
    while (now_ns() < end) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 1);
        for (int i = 0; i < ready; i++) {
            if (!hear(events[i].data.ptr))
                continue;
            count++;
            ask(events[i].data.ptr, false);
        }
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"count\": %" PRIu64 ", \"per_s\": %.1f}\n", count,
           (double)count / seconds);
}

static void
connections(uint16_t port, unsigned ms, unsigned parallel)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct asker *all = calloc(parallel, sizeof *all);
    if (!all)
        fail("no memory");
    uint64_t start = now_ns(), now = start, count = 0;
    uint64_t end = start + ms * UINT64_C(1000000);
    for (unsigned i = 0; i < parallel; i++) {
        all[i].sequence = (uint64_t)i << 40;
        begin(epoll, port, &all[i]);
    }
    for (unsigned open = parallel; open;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        now = now_ns();
        for (int i = 0; i < ready; i++) {
            struct asker *asker = events[i].data.ptr;
            if (!hear(asker))
                continue;
            count += now < end;
            close(asker->fd);
            if (now < end)
                begin(epoll, port, asker);
            else
                open--;
        }
    }
    printf("{\"count\": %" PRIu64 ", \"per_s\": %.1f}\n", count,
           (double)count * 1e3 / ms);
}

/* ---- datagrams ----------------------------------------------------------------- */

struct batch {
    struct mmsghdr heads[DATAGRAMS];
    struct iovec pieces[DATAGRAMS];
    struct sockaddr_in peers[DATAGRAMS];
    char bytes[DATAGRAMS][DATAGRAM_BYTES];
};

static void
clear(struct batch *batch, bool with_peers)
{
    for (unsigned i = 0; i < DATAGRAMS; i++) {
        batch->pieces[i] = (struct iovec){batch->bytes[i], DATAGRAM_BYTES};
        batch->heads[i].msg_hdr = (struct msghdr){
            .msg_iov = &batch->pieces[i],
            .msg_iovlen = 1,
            .msg_name = with_peers ? &batch->peers[i] : NULL,
            .msg_namelen = with_peers ? sizeof batch->peers[i] : 0,
        };
    }
}

static int
datagram_socket(uint16_t port, bool target)
{
    struct sockaddr_in address = loopback(port);
    int size = KERNEL_BYTES, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    for (int way = SO_RCVBUF; fd >= 0 && way; way = way == SO_RCVBUF ? SO_RCVBUFFORCE : 0)
        setsockopt(fd, SOL_SOCKET, way, &size, sizeof size); /* the latter if root */
    int done = target ? bind(fd, (struct sockaddr *)&address, sizeof address)
                      : connect(fd, (struct sockaddr *)&address, sizeof address);
    if (fd < 0 || done < 0)
        fail("datagrams of 127.0.0.1:%u: %s", port, strerror(errno));
    return fd;
}

__attribute__((noreturn)) static void
udp_target(uint16_t port)
{
    static struct batch batch;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int fd = datagram_socket(port, true);
    getsockname(fd, (struct sockaddr *)&address, &length);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(SERVER_LIFE_S);
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        clear(&batch, true);
        int count = recvmmsg(fd, batch.heads, DATAGRAMS, MSG_WAITFORONE, NULL);
        for (int i = 0; i < count; i++)
            batch.pieces[i].iov_len = batch.heads[i].msg_len;
        for (int sent = 0; sent < count;) {
            int more = sendmmsg(fd, batch.heads + sent, (unsigned)(count - sent), 0);
            sent += more > 0 ? more : 1; /* a peer that has gone is no matter */
        }
    }
}

/* Wait for an answer; 0: none in time, and what came to no port is as good as none. */
static bool
comes(int fd, int ms)
{
    struct pollfd flow = {.fd = fd, .events = POLLIN};
    return poll(&flow, 1, ms) > 0;
}

static uint64_t lost;

static void
send_datagram(int fd, uint64_t sequence)
{
    char sent[MESSAGE_BYTES] = {0};
    memcpy(sent, &sequence, sizeof sequence);
    if (send(fd, sent, sizeof sent, 0) < 0 && errno != ECONNREFUSED)
        fail("datagram: %s", strerror(errno));
}

/* Returns true when the answer came. */
static bool
hear_datagram(int fd, uint64_t sequence)
{
    char came[DATAGRAM_BYTES];
    ssize_t size = recv(fd, came, sizeof came, MSG_DONTWAIT);
    return size == MESSAGE_BYTES && !memcmp(came, &sequence, sizeof sequence);
}

static void
datagram_exchange(int fd, uint64_t sequence)
{
    send_datagram(fd, sequence);
    while (!hear_datagram(fd, sequence)) {
        if (comes(fd, LOST_MS))
            continue;
        if (++lost > 10)
            fail("udp: %" PRIu64 " datagrams were lost", lost);
        send_datagram(fd, sequence);
    }
}

static void
udp_flows(uint16_t port, unsigned ms, unsigned flows)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct flow { int fd; uint64_t sequence, asked_at; } all[MAX_FLOWS];
    uint64_t ns = UINT64_C(1000000), count = 0;
    for (unsigned i = 0; i < flows; i++) {
        all[i].fd = datagram_socket(port, false);
        watch(epoll, EPOLL_CTL_ADD, all[i].fd, EPOLLIN, &all[i]);
        all[i].sequence = (uint64_t)i << 40;
        datagram_exchange(all[i].fd, all[i].sequence);
    }
    uint64_t start = now_ns(), now = start, end = start + ms * ns;
    for (unsigned i = 0; i < flows; i++) {
        all[i].asked_at = start;
        send_datagram(all[i].fd, ++all[i].sequence);
    }
    while ((now = now_ns()) < end) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 1);
        for (int i = 0; i < ready; i++) {
            struct flow *flow = events[i].data.ptr;
            if (!hear_datagram(flow->fd, flow->sequence))
                continue;
            count++;
            flow->asked_at = now;
            send_datagram(flow->fd, ++flow->sequence);
        }
        for (unsigned i = 0; i < flows; i++) {
            if (now < all[i].asked_at + LOST_MS * ns)
                continue;
            lost++;
            all[i].asked_at = now;
            send_datagram(all[i].fd, ++all[i].sequence);
        }
    }
    double seconds = (double)(now - start) / 1e9;
    printf("{\"count\": %" PRIu64 ", \"per_s\": %.1f, \"lost\": %" PRIu64 "}\n", count,
           (double)count / seconds, lost);
}

/* Take what is there; return how many datagrams of this size it was. */
static uint64_t
drain(int fd, size_t size)
{
    static struct batch batch;
    uint64_t whole = 0;
    clear(&batch, false);
    int count = recvmmsg(fd, batch.heads, DATAGRAMS, MSG_DONTWAIT, NULL);
    for (int i = 0; i < count; i++)
        whole += batch.heads[i].msg_len == size;
    return whole;
}

static void
udp_flood(uint16_t port, unsigned ms, unsigned rate, unsigned size)
{
    static struct batch batch;
    int fd = datagram_socket(port, false);
    datagram_exchange(fd, 1); /* the flow is there */
    uint64_t ns = UINT64_C(1000000), start = now_ns(), now, sent = 0, came = 0;
    uint64_t wanted = (uint64_t)rate * ms / 1000;
    while (sent < wanted) {
        now = now_ns();
        if (now > start + 2 * ms * ns)
            fail("udp: only %" PRIu64 " of %" PRIu64 " could be sent", sent, wanted);
        uint64_t due = (now - start) * rate / 1000000000 + 1;
        due = due < wanted ? due : wanted;
        clear(&batch, false);
        for (unsigned i = 0; i < DATAGRAMS; i++)
            batch.pieces[i].iov_len = size;
        unsigned most = due - sent < DATAGRAMS ? (unsigned)(due - sent) : DATAGRAMS;
        int more = most ? sendmmsg(fd, batch.heads, most, 0) : 0;
        if (more < 0 && errno != ECONNREFUSED && !would_block())
            fail("udp: %s", strerror(errno));
        sent += more > 0 ? (uint64_t)more : 0;
        came += drain(fd, size);
        if (sent >= due)
            came += comes(fd, 1) ? drain(fd, size) : 0;
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    while (came < sent && comes(fd, LOST_MS))
        came += drain(fd, size);
    printf("{\"sent\": %" PRIu64 ", \"came\": %" PRIu64 ", \"share\": %.4f, "
           "\"sent_per_s\": %.1f}\n",
           sent, came, (double)came / (double)sent, (double)sent / seconds);
}

/* Hold connections; ONE returns the next, and without it all of them echo. */
static void
hold(uint16_t port, unsigned conns, int (*one)(uint16_t))
{
    uint64_t start = now_ns();
    for (unsigned i = 0; one && i < conns; i++)
        one(port);
    if (!one)
        open_all(epoll_create1(EPOLL_CLOEXEC), port, conns);
    printf("{\"conns\": %u, \"seconds\": %.3f}\n", conns,
           (double)(now_ns() - start) / 1e9);
    fflush(stdout);
    while (read(STDIN_FILENO, chunk, sizeof chunk) > 0)
        ;
}

int
main(int argc, char **argv)
{
    if (argc > 5 && !strcmp(argv[1], "via")) {
        proxy = strcmp(argv[2], "connect") ? SOCKS5 : CONNECT;
        behind = (uint16_t)number(argv[3], 1, UINT16_MAX);
        argc -= 3;
        argv += 3;
    }
    if (argc < 3)
        fail("usage: load [via socks5|connect TARGET] sink-source|get|put|fetch|start|"
             "echo|first|rr|cps|hold|web|ws|web-hold|ws-hold|udp-target|udp-echo|"
             "udp-flows|udp-flood PORT [...]");
    const char *mode = argv[1];
    uint16_t port = (uint16_t)number(argv[2], 0, UINT16_MAX);
    all_descriptors();
    if (!strcmp(mode, "sink-source") && argc == 3)
        sink_source(port);
    if (!strcmp(mode, "udp-target") && argc == 3)
        udp_target(port);
    signal(SIGALRM, on_alarm);
    alarm(MAX_MS / 1000 + SPARE_S);
    const uint64_t most_bytes = UINT64_C(1) << 50;
    bool get = !strcmp(mode, "get");
    if ((get || !strcmp(mode, "put")) && argc == 5)
        bulk(get, port, number(argv[3], 1, most_bytes),
             (unsigned)number(argv[4], 1, MAX_CONNS));
    else if (!strcmp(mode, "fetch") && argc == 5)
        fetch(port, number(argv[3], 1, most_bytes),
              (unsigned)number(argv[4], 1, MAX_MS));
    else if (!strcmp(mode, "start") && argc == 4)
        start_of_stream(port, (unsigned)number(argv[3], 1000, MAX_MS));
    else if (!strcmp(mode, "echo") && argc == 4)
        latency(exchange, echoing(port), (unsigned)number(argv[3], 1, MAX_MS));
    else if (!strcmp(mode, "ws") && argc == 4)
        latency(exchange, upgraded(port), (unsigned)number(argv[3], 1, MAX_MS));
    else if (!strcmp(mode, "first") && argc == 4)
        latency(first_exchange, port, (unsigned)number(argv[3], 1, MAX_MS));
    else if (!strcmp(mode, "udp-echo") && argc == 4)
        latency(datagram_exchange, datagram_socket(port, false),
                (unsigned)number(argv[3], 1, MAX_MS));
    else if (!strcmp(mode, "udp-flows") && argc == 5)
        udp_flows(port, (unsigned)number(argv[3], 1, MAX_MS),
                  (unsigned)number(argv[4], 1, MAX_FLOWS));
    else if (!strcmp(mode, "udp-flood") && argc == 6)
        udp_flood(port, (unsigned)number(argv[3], 1, MAX_MS),
                  (unsigned)number(argv[4], 1, MAX_RATE),
                  (unsigned)number(argv[5], MESSAGE_BYTES + 1, DATAGRAM_BYTES));
    else if (!strcmp(mode, "web") && argc == 6)
        web(port, (unsigned)number(argv[3], 1, MAX_MS),
            (unsigned)number(argv[4], 1, MAX_CONNS), number(argv[5], 1, most_bytes));
    else if (!strcmp(mode, "rr") && argc == 5)
        requests(port, (unsigned)number(argv[3], 1, MAX_MS),
                 (unsigned)number(argv[4], 1, MAX_CONNS));
    else if (!strcmp(mode, "cps") && argc == 5)
        connections(port, (unsigned)number(argv[3], 1, MAX_MS),
                    (unsigned)number(argv[4], 1, MAX_CONNS));
    else if (!strcmp(mode, "hold") && argc == 4)
        hold(port, (unsigned)number(argv[3], 1, MAX_CONNS), NULL);
    else if (!strcmp(mode, "web-hold") && argc == 4)
        hold(port, (unsigned)number(argv[3], 1, MAX_CONNS), answered);
    else if (!strcmp(mode, "ws-hold") && argc == 4)
        hold(port, (unsigned)number(argv[3], 1, MAX_CONNS), upgraded);
    else
        fail("%s: no such mode, or not this many numbers", mode);
    return 0;
}
