// The article's server on cloudwego/netpoll: an event loop, and a function that is
// called with a connection that is readable.
package main

import (
	"context"
	"flag"
	"log"

	"github.com/cloudwego/netpoll"
)

func onRequest(_ context.Context, conn netpoll.Connection) error {
	reader := conn.Reader()
	data, err := reader.Next(reader.Len())
	if err != nil {
		return err
	}
	if _, err := conn.Write(data); err != nil {
		return err
	}
	return reader.Release()
}

func main() {
	address := flag.String("address", "127.0.0.1:8080", "where to listen")
	flag.Parse()
	listener, err := netpoll.CreateListener("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	eventLoop, err := netpoll.NewEventLoop(onRequest)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(eventLoop.Serve(listener))
}
