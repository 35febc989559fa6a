// A client that knows nothing of Peerage: a socket to a name and a port.
//
//	ask HOST PORT TEXT
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	stream, err := net.Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	fmt.Fprintln(stream, os.Args[3])
	answer, err := bufio.NewReader(stream).ReadString('\n')
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(answer)
}
