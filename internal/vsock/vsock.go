// Package vsock connects a parent instance with its enclave.
//
// On Nitro, and in QEMU's nitro-enclave machine, the two talk over AF_VSOCK. On
// a laptop a Unix socket takes its place, with the handshake that Firecracker
// and vhost-device-vsock use for connections from the host ("hybrid vsock"), so
// that the enclave behaves the same in all three.
//
// Addresses:
//
//	vsock://16:5000        AF_VSOCK, context id 16, port 5000; to listen: vsock://:5000
//	unix:/run/x.vsock:5000 a Unix socket, "CONNECT 5000\n" sent and "OK …\n" expected
//	unix:/run/x.sock       a Unix socket, no handshake
//
// What the enclave dials on its parent is vsock://3:5001 on Nitro and
// unix:/run/x.vsock_5001 on a laptop: hybrid vsock names the host's socket for
// guest connections that way, and they carry no handshake.
package vsock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
)

// HandshakeTimeout bounds the CONNECT handshake on either side.
const HandshakeTimeout = 5 * time.Second

// maxHandshakeBytes is longer than any "CONNECT <port>\n" or "OK <port>\n".
const maxHandshakeBytes = 32

// Address is a parsed address of any of the forms.
type Address struct {
	path      string // of the Unix socket; empty for AF_VSOCK
	contextID uint32
	port      uint32
	handshake bool
}

// ParseAddress reads an address in one of the forms of the package comment.
func ParseAddress(text string) (Address, error) {
	fail := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("address %q: %s; want vsock://CID:PORT, unix:PATH or unix:PATH:PORT", text, why)
	}
	if rest, ok := strings.CutPrefix(text, "vsock://"); ok {
		cid, port, ok := strings.Cut(rest, ":")
		if !ok {
			return fail("no port")
		}
		a := Address{contextID: vsock.Host}
		if cid != "" {
			n, err := strconv.ParseUint(cid, 10, 32)
			if err != nil {
				return fail("bad context id")
			}
			a.contextID = uint32(n)
		}
		n, err := strconv.ParseUint(port, 10, 32)
		if err != nil {
			return fail("bad port")
		}
		a.port = uint32(n)
		return a, nil
	}
	rest, ok := strings.CutPrefix(text, "unix:")
	if !ok || rest == "" {
		return fail("unknown form")
	}
	path, port, ok := cutLast(rest, ":")
	if !ok {
		return Address{path: rest}, nil
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil || path == "" {
		return fail("bad port")
	}
	return Address{path: path, port: uint32(n), handshake: true}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// String is the address as it is written.
func (a Address) String() string {
	switch {
	case a.path == "":
		return fmt.Sprintf("vsock://%d:%d", a.contextID, a.port)
	case a.handshake:
		return fmt.Sprintf("unix:%s:%d", a.path, a.port)
	default:
		return "unix:" + a.path
	}
}

// Dial connects to an address.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	a, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	if a.path == "" {
		conn, err := vsock.Dial(a.contextID, a.port, nil)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", a, err)
		}
		return conn, nil
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", a.path)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", a, err)
	}
	if !a.handshake {
		return conn, nil
	}
	if err := connect(ctx, conn, a.port); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", a, err), conn.Close())
	}
	return conn, nil
}

// connect is the dialling side of the handshake.
func connect(ctx context.Context, conn net.Conn, port uint32) error {
	deadline := time.Now().Add(HandshakeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	line, err := readLine(conn)
	if err != nil {
		return fmt.Errorf("no answer to CONNECT: %w", err)
	}
	if !strings.HasPrefix(line, "OK ") {
		return errors.New("CONNECT was refused")
	}
	return conn.SetDeadline(time.Time{})
}

// readLine reads byte by byte: what follows the line is the connection's own.
func readLine(r io.Reader) (string, error) {
	var line [maxHandshakeBytes]byte
	for i := range line {
		if _, err := io.ReadFull(r, line[i:i+1]); err != nil {
			return "", err
		}
		if line[i] == '\n' {
			return string(line[:i]), nil
		}
	}
	return "", bufio.ErrTooLong
}

// Listen listens on an address. A Unix socket is created with mode 0600; one
// that a dead process left behind is replaced, one that a live process listens
// on is an error.
func Listen(address string) (net.Listener, error) {
	a, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	if a.path == "" {
		l, err := vsock.Listen(a.port, nil)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		return l, nil
	}
	l, err := listenUnix(a.path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	if !a.handshake {
		return l, nil
	}
	return newHybridListener(l, a.port), nil
}

func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(errors.New("another process listens there"), conn.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
