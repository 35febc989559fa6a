// Tailscale in user space, for scripts/bench peers: its library tsnet at both ends, and between them its own relay (DERP) and the control
// server of its own tests, so that nothing leaves the namespaces.
//
//	peerage-bench-tailscale middle IP                    relay, STUN and control; prints where control answers
//	peerage-bench-tailscale serve CONTROL FOLDER PORT…   offers what listens at these ports of this place; prints its address
//	peerage-bench-tailscale dial CONTROL FOLDER IP LISTEN=PORT…
//	                                                     listens, and goes on to ports of that address; prints a line
//	                                                     once packets go directly
//
// With TS_DEBUG_ALWAYS_USE_DERP in the environment of both ends everything goes by the relay.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/envknob"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

const (
	derpPort    = 3341
	controlPort = 3342
	stunPort    = 3343
)

func main() {
	// Otherwise it sends what it logs to its makers.
	envknob.SetNoLogsNoSupport()
	if len(os.Args) < 3 {
		log.Fatal("usage: peerage-bench-tailscale middle|serve|dial …")
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "middle":
		err = middle(args[0])
	case "serve":
		err = serve(args[0], args[1], args[2:])
	case "dial":
		err = dial(args[0], args[1], args[2], args[3:])
	default:
		err = fmt.Errorf("%s is none of middle, serve and dial", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
	select {}
}

// middle runs what is between the two ends: their relay, a STUN server and what tells them of each other.
func middle(ip string) error {
	derp := derpserver.New(key.NewNode(), logger.Discard)
	relay := httptest.NewUnstartedServer(derpserver.Handler(derp))
	relay.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	if err := listenAt(relay, ip, derpPort); err != nil {
		return err
	}
	relay.StartTLS()
	go func() {
		log.Fatal(stunserver.New(context.Background()).ListenAndServe(fmt.Sprintf("%s:%d", ip, stunPort)))
	}()
	node := &tailcfg.DERPNode{
		Name: "1", RegionID: 1, HostName: ip, IPv4: ip, IPv6: "none", STUNPort: stunPort, DERPPort: derpPort,
		InsecureForTests: true, STUNTestIP: ip,
	}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "bench", Nodes: []*tailcfg.DERPNode{node}}
	control := &testcontrol.Server{
		DERPMap:        &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: region}},
		MagicDNSDomain: "bench.ts.net",
		AllOnline:      true,
		Logf:           logger.Discard,
	}
	control.HTTPTestServer = httptest.NewUnstartedServer(control)
	if err := listenAt(control.HTTPTestServer, ip, controlPort); err != nil {
		return err
	}
	control.HTTPTestServer.Start()
	fmt.Println(control.HTTPTestServer.URL)
	return nil
}

func listenAt(server *httptest.Server, ip string, port int) error {
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", ip, port))
	if err != nil {
		return err
	}
	server.Listener.Close()
	server.Listener = listener
	return nil
}

// node joins the network of a control server.
func node(control, folder, name string) (*tsnet.Server, netip.Addr, error) {
	server := &tsnet.Server{Hostname: name, Dir: folder, ControlURL: control, Logf: logger.Discard, UserLogf: logger.Discard}
	status, err := server.Up(context.Background())
	if err != nil {
		return nil, netip.Addr{}, err
	}
	for _, ip := range status.TailscaleIPs {
		if ip.Is4() {
			return server, ip, nil
		}
	}
	return nil, netip.Addr{}, fmt.Errorf("%s got no IPv4 address", name)
}

func serve(control, folder string, ports []string) error {
	server, ip, err := node(control, folder, "server")
	if err != nil {
		return err
	}
	for _, port := range ports {
		listener, err := server.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go accept(listener, func() (net.Conn, error) { return net.Dial("tcp", "127.0.0.1:"+port) })
	}
	fmt.Println(ip)
	return nil
}

func dial(control, folder, far string, forwards []string) error {
	listeners := map[string]net.Listener{}
	for _, forward := range forwards {
		listen, port, ok := strings.Cut(forward, "=")
		if !ok {
			return fmt.Errorf("%s is not LISTEN=PORT", forward)
		}
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		listeners[port] = listener
	}
	server, _, err := node(control, folder, "client")
	if err != nil {
		return err
	}
	for port, listener := range listeners {
		go accept(listener, func() (net.Conn, error) { return server.Dial(context.Background(), "tcp", far+":"+port) })
	}
	if envknob.Bool("TS_DEBUG_ALWAYS_USE_DERP") {
		return nil
	}
	local, err := server.LocalClient()
	if err != nil {
		return err
	}
	for {
		ctx, done := context.WithTimeout(context.Background(), time.Second)
		pong, err := local.Ping(ctx, netip.MustParseAddr(far), tailcfg.PingDisco)
		done()
		if err == nil && pong.Endpoint != "" {
			fmt.Println("direct", pong.Endpoint)
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// accept copies each connection to one that is opened for it, both ways, until both have ended.
func accept(listener net.Listener, open func() (net.Conn, error)) {
	for {
		near, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			far, err := open()
			if err != nil {
				log.Print(err)
				near.Close()
				return
			}
			back := make(chan struct{})
			go func() {
				pour(near, far)
				close(back)
			}()
			pour(far, near)
			<-back
			near.Close()
			far.Close()
		}()
	}
}

// pour copies until from has ended, and ends to as far as it can be ended alone.
func pour(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok {
		to.Close()
		return
	}
	half.CloseWrite()
}
