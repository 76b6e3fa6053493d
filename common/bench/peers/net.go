// The echo server as Go programmers write it: a goroutine for each connection,
// the package net and nothing else. Its accept loop continues after an error, as
// many do. The battery shows what that does when descriptors run out.
package main

import (
	"flag"
	"log"
	"net"
)

func echo(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func main() {
	address := flag.String("address", "127.0.0.1:8080", "where to listen")
	flag.Parse()
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Print(err)
			continue
		}
		go echo(conn)
	}
}
