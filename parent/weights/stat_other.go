//go:build !linux

package weights

import "golang.org/x/sys/unix"

func newIdentity(s *unix.Stat_t) identity {
	return identity{device: uint64(s.Dev), inode: s.Ino, size: s.Size, mtime: s.Mtim, ctime: s.Ctim}
}
