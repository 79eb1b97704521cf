package softnsm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/internal/attest"
)

// peer measures the process at the other end of a Unix connection.
func (m *measurer) peer(conn net.Conn) (attest.PCRs, error) {
	pid, err := peerPID(conn)
	if err != nil {
		return nil, fmt.Errorf("find the peer: %w", err)
	}
	// The link leads to the file that is executed, even when another one has
	// taken its path since, or it was deleted.
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("measure process %d: %w; it belongs to another user, or made itself undumpable before it asked", pid, err)
	}
	if err != nil {
		return nil, fmt.Errorf("measure process %d: %w", pid, err)
	}
	defer f.Close()
	sum, err := m.hash(f)
	if err != nil {
		return nil, fmt.Errorf("measure process %d: %w", pid, err)
	}
	return imagePCRs(sum), nil
}

// peerPID asks the kernel who connected (unix(7), SO_PEERCRED).
func peerPID(conn net.Conn) (pid int32, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("%T is not a Unix socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	if cred.Pid <= 0 {
		return 0, errors.New("the kernel names no process; is it in another pid namespace?")
	}
	return cred.Pid, nil
}

// hash returns the file's digest, from the cache when the file is the same. A
// file that is being executed cannot be written to.
func (m *measurer) hash(f *os.File) (digest, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return digest{}, err
	}
	id := fileID{device: st.Dev, inode: st.Ino, size: st.Size, modified: st.Mtim.Nano()}
	m.mu.Lock()
	defer m.mu.Unlock()
	if sum, ok := m.cache[id]; ok {
		return sum, nil
	}
	sum, err := hashFile(f)
	if err != nil {
		return digest{}, err
	}
	if m.cache == nil || len(m.cache) >= maxCached {
		m.cache = make(map[fileID]digest)
	}
	m.cache[id] = sum
	return sum, nil
}
