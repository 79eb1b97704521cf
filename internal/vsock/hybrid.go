package vsock

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// hybridListener is the accepting side of the CONNECT handshake. Handshakes run
// beside each other: a peer that connects and says nothing delays nobody.
type hybridListener struct {
	net.Listener
	port uint32

	accepted chan net.Conn
	failed   chan struct{} // closed once the inner listener fails
	err      error         // its error, set before failed is closed
	done     chan struct{} // closed by Close
	close    func() error
}

func newHybridListener(inner net.Listener, port uint32) *hybridListener {
	l := &hybridListener{
		Listener: inner,
		port:     port,
		accepted: make(chan net.Conn),
		failed:   make(chan struct{}),
		done:     make(chan struct{}),
	}
	l.close = sync.OnceValue(func() error {
		close(l.done)
		return inner.Close()
	})
	go l.acceptLoop()
	return l
}

func (l *hybridListener) acceptLoop() {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			l.err = err
			close(l.failed)
			return
		}
		go l.handshake(conn)
	}
}

// handshake answers one CONNECT and hands the connection to Accept.
func (l *hybridListener) handshake(conn net.Conn) {
	if err := l.answer(conn); err != nil {
		_ = conn.Close() // whoever speaks another protocol learns nothing
		return
	}
	select {
	case l.accepted <- conn:
	case <-l.done:
		_ = conn.Close()
	}
}

func (l *hybridListener) answer(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(HandshakeTimeout)); err != nil {
		return err
	}
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	if line != fmt.Sprintf("CONNECT %d", l.port) {
		return fmt.Errorf("port not served")
	}
	if _, err := fmt.Fprintf(conn, "OK %d\n", l.port); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

func (l *hybridListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.failed:
		return nil, l.err
	}
}

func (l *hybridListener) Close() error { return l.close() }
