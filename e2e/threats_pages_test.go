package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// listening are the TCP ports that a process listens on.
func listening(pid int) (addresses []string) {
	GinkgoHelper()
	sockets := map[string]bool{}
	descriptors, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	Expect(err).NotTo(HaveOccurred())
	for _, descriptor := range descriptors {
		if to, err := os.Readlink(descriptor); err == nil { // it may have been closed
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid)) // proc(5); loopback's IPv4 is what children listen on
	Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != "0A" || !sockets[fields[9]] { // 0A: TCP_LISTEN
			continue
		}
		var address, port uint32
		_, err := fmt.Sscanf(fields[1], "%X:%X", &address, &port)
		Expect(err).NotTo(HaveOccurred())
		ip := net.IPv4(byte(address), byte(address>>8), byte(address>>16), byte(address>>24))
		addresses = append(addresses, net.JoinHostPort(ip.String(), fmt.Sprint(port)))
	}
	return addresses
}

// pages are all that the processes outside show by HTTP without asking who reads, by
// address: what their indices name, and what programs of their kinds are known to have.
func (a *rootAttacker) pages(ctx context.Context) map[string]string {
	GinkgoHelper()
	read := map[string]string{}
	client := &http.Client{Timeout: 5 * time.Second}
	look := func(base, path string) string {
		if content, ok := read[base+path]; ok {
			return content
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			return ""
		}
		resp, err := client.Do(req)
		if err != nil { // it speaks something else
			return ""
		}
		defer resp.Body.Close()
		content, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
		if err == nil && resp.StatusCode == http.StatusOK {
			read[base+path] = string(content)
		}
		return string(content)
	}
	for _, pid := range a.outside() {
		for _, address := range listening(pid) {
			base := "http://" + address
			for _, path := range []string{"/metrics", "/status"} {
				look(base, path)
			}
			var index struct{ Pages map[string]string }
			if json.Unmarshal([]byte(look(base, "/")), &index) == nil { // a router's
				for path := range index.Pages {
					look(base, strings.Replace(path, "{id}", "any", 1))
				}
			}
			for _, line := range envoyPage.FindAllStringSubmatch(look(base, "/help"), -1) {
				look(base, line[1]) // what would change something is by POST, and refuses this
			}
		}
	}
	return read
}

// envoyPage is a line of what Envoy's admin says of itself.
var envoyPage = regexp.MustCompile(`(?m)^  (/[a-z_/]+)`)
