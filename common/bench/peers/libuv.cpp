// The usual echo server on libuv: it passes what it reads to uv_write, which buffers
// without bound what the socket does not take. A yardstick, like the library's own
// examples, and not a server to copy.
#include <netinet/in.h>
#include <sys/socket.h>
#include <uv.h>

#include <cstddef>
#include <exception>
#include <string>

#include "common/socket/address.h"
#include "common/socket/fd.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

struct Write {
  uv_write_t request;
  uv_buf_t buffer;
};

void free_client(uv_handle_t* client) { delete reinterpret_cast<uv_tcp_t*>(client); }

void allocate(uv_handle_t*, std::size_t size, uv_buf_t* buffer) {
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks): on_read or on_written deletes it
  *buffer = uv_buf_init(new char[size], static_cast<unsigned>(size));
}

void on_written(uv_write_t* request, int) {
  auto* write = reinterpret_cast<Write*>(request);
  delete[] write->buffer.base;
  delete write;
}

void on_read(uv_stream_t* client, ssize_t size, const uv_buf_t* buffer) {
  if (size > 0) {
    auto* write = new Write{{}, uv_buf_init(buffer->base, static_cast<unsigned>(size))};
    uv_write(&write->request, client, &write->buffer, 1, on_written);
    return;
  }
  delete[] buffer->base;
  if (size < 0) uv_close(reinterpret_cast<uv_handle_t*>(client), free_client);
}

void on_connection(uv_stream_t* listener, int status) {
  if (status < 0) return;
  auto* client = new uv_tcp_t;
  uv_tcp_init(listener->loop, client);
  auto* stream = reinterpret_cast<uv_stream_t*>(client);
  if (uv_accept(listener, stream) == 0) {
    uv_tcp_nodelay(client, 1);
    uv_read_start(stream, allocate, on_read);
  } else {
    uv_close(reinterpret_cast<uv_handle_t*>(client), free_client);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options("The usual echo server on libuv " + std::string(uv_version_string()));
  options.add(endpoint);
  options.parse(argc, argv);
  try {
    ignore_sigpipe();
    raise_descriptor_limit();
    const Address address = resolve(endpoint.host, endpoint.port);
    uv_loop_t* loop = uv_default_loop();
    uv_tcp_t listener;
    uv_tcp_init(loop, &listener);
    uv_tcp_bind(&listener, address.get(), 0);
    const int error = uv_listen(reinterpret_cast<uv_stream_t*>(&listener), 4096, on_connection);
    if (error != 0) throw StartupError(uv_strerror(error));
    uv_os_fd_t fd = -1;
    uv_fileno(reinterpret_cast<uv_handle_t*>(&listener), &fd);
    Fd named(fd);
    announce(named);
    named.release();  // libuv owns it
    return uv_run(loop, UV_RUN_DEFAULT);
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
