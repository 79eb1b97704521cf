package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// scanMemory looks for a marker in every readable mapping of a running process:
// its heap, its stacks, its mapped files, which is all that a core dump would
// hold and more.
func scanMemory(pid int, marker []byte) (found bool, scannedBytes int64, err error) {
	const piece = 4 << 20
	err = readMemory(pid, make([]byte, piece+len(marker)), len(marker), func(b []byte) {
		scannedBytes += int64(len(b))
		found = found || bytes.Contains(b, marker)
	})
	return found, scannedBytes, err
}

// readMemory gives each readable mapping of a process piece by piece, with an
// overlap so that what lies across a border is seen.
func readMemory(pid int, buffer []byte, overlap int, see func([]byte)) error {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	defer maps.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer memory.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var start, end int64
		var permissions string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &start, &end, &permissions); err != nil {
			continue // above the address space that a process can use: [vsyscall]
		}
		if permissions[0] != 'r' || strings.HasSuffix(lines.Text(), "[vvar]") || strings.HasSuffix(lines.Text(), "[vvar_vclock]") {
			continue
		}
		if err := readRange(memory, start, end, buffer, overlap, see); err != nil {
			return fmt.Errorf("mapping %q: %w", lines.Text(), err)
		}
	}
	return nil
}

func readRange(memory io.ReaderAt, start, end int64, buffer []byte, overlap int, see func([]byte)) error {
	piece := int64(len(buffer) - overlap)
	for at := start; at < end; at += piece {
		n, err := memory.ReadAt(buffer[:min(int64(len(buffer)), end-at)], at)
		see(buffer[:n])
		// A mapping can shrink while it is read, and pages beyond a file's end
		// cannot be read at all (EIO).
		if err != nil && !errors.Is(err, io.EOF) && n == 0 && at == start && strings.Contains(err.Error(), "permission") {
			return err
		}
	}
	return nil
}

// engineHolds scans the engines: the processes that the engine children started.
func (c *cluster) engineHolds(marker string) bool {
	GinkgoHelper()
	for name, pid := range c.pids() {
		if !strings.HasPrefix(name, "engine-") {
			continue
		}
		for _, child := range childrenOf(pid) {
			found, _, err := scanMemory(child, []byte(marker))
			Expect(err).NotTo(HaveOccurred())
			if found {
				return true
			}
		}
	}
	return false
}

func childrenOf(parent int) []int {
	GinkgoHelper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	Expect(err).NotTo(HaveOccurred())
	var children []int
	for _, path := range stats {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // it has gone
		}
		var pid, ppid int
		var state string
		rest := content[bytes.LastIndexByte(content, ')')+1:] // the name may hold anything
		if _, err := fmt.Sscanf(string(content), "%d", &pid); err != nil {
			continue
		}
		if _, err := fmt.Sscanf(string(rest), "%s %d", &state, &ppid); err == nil && ppid == parent {
			children = append(children, pid)
		}
	}
	return children
}

// tls trusts the cluster's development CA.
func (c *cluster) tls() *tls.Config {
	GinkgoHelper()
	content, err := os.ReadFile(filepath.Join(c.stateDir, "ca.pem"))
	Expect(err).NotTo(HaveOccurred())
	roots := x509.NewCertPool()
	Expect(roots.AppendCertsFromPEM(content)).To(BeTrue())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}
