// The usual echo server on Asio: a coroutine for each connection, on one thread. Its accept
// loop does not handle a lack of descriptors: a yardstick, not a server to copy.
#include <array>
#include <asio.hpp>
#include <exception>
#include <system_error>

#include "common/socket/fd.h"
#include "common/socket/options.h"
#include "common/socket/process.h"

namespace {

using asio::ip::tcp;

asio::awaitable<void> echo(tcp::socket client) {
  std::array<char, 4096> buffer;
  try {
    for (;;) {
      const auto size = co_await client.async_read_some(asio::buffer(buffer), asio::use_awaitable);
      co_await asio::async_write(client, asio::buffer(buffer, size), asio::use_awaitable);
    }
  } catch (const std::system_error&) {
    // The end, or a reset. The destructor of `client` closes the connection.
  }
}

asio::awaitable<void> serve(tcp::acceptor listener) {
  for (;;) {
    tcp::socket client = co_await listener.async_accept(asio::use_awaitable);
    client.set_option(tcp::no_delay(true));
    asio::co_spawn(listener.get_executor(), echo(std::move(client)), asio::detached);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Endpoint endpoint;
  Options options(fmt::format("The usual echo server on Asio {}.{}.{}", ASIO_VERSION / 100'000,
                              ASIO_VERSION / 100 % 1000, ASIO_VERSION % 100));
  options.add(endpoint);
  options.parse(argc, argv);
  try {
    raise_descriptor_limit();
    asio::io_context context(1);
    tcp::acceptor listener(context,
                           tcp::endpoint(asio::ip::make_address(endpoint.host), endpoint.port));
    Fd named(listener.native_handle());
    announce(named);
    named.release();  // Asio owns it
    asio::co_spawn(context, serve(std::move(listener)), asio::detached);
    context.run();
  } catch (const std::exception& error) {
    log_line("{}: {}", argv[0], error.what());
    return 1;
  }
}
