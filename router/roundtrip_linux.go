package router

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// roundTripOf is the least round trip of a connection's last minutes, as the kernel
// has measured it on the way (tcp(7), TCP_INFO): no packet is sent for it.
func roundTripOf(conn net.Conn) (time.Duration, bool) {
	tcp, ok := conn.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	if controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) //nolint:gosec // a file descriptor
	}); controlErr != nil || err != nil {
		return 0, false
	}
	if info.Min_rtt == 0 || info.Min_rtt == ^uint32(0) { // not measured yet
		return 0, false
	}
	return time.Duration(info.Min_rtt) * time.Microsecond, true
}
