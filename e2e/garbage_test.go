package e2e_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var loopbackAddress = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// doors lists every port and socket that the cluster listens on: the loopback
// addresses in its processes' arguments and in Envoy's bootstraps, and the
// sockets in its run directory.
func (c *cluster) doors() []string {
	GinkgoHelper()
	seen := map[string]bool{}
	note := func(text string) {
		for _, address := range loopbackAddress.FindAllString(text, -1) {
			seen["tcp "+address] = true
		}
	}
	for name, pid := range c.pids() {
		arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		Expect(err).NotTo(HaveOccurred(), name)
		note(string(arguments))
	}
	runDir, err := os.Readlink(filepath.Join(c.stateDir, "run"))
	Expect(err).NotTo(HaveOccurred())
	entries, err := os.ReadDir(runDir)
	Expect(err).NotTo(HaveOccurred())
	for _, entry := range entries {
		switch path := filepath.Join(runDir, entry.Name()); {
		case entry.Type()&os.ModeSocket != 0:
			seen["unix "+path] = true
		case strings.HasSuffix(path, "-envoy.json"):
			bootstrap, err := os.ReadFile(path)
			Expect(err).NotTo(HaveOccurred())
			note(string(bootstrap))
			for _, port := range regexp.MustCompile(`"port_value": (\d+)`).FindAllStringSubmatch(string(bootstrap), -1) {
				seen["tcp 127.0.0.1:"+port[1]] = true
			}
		}
	}
	var doors []string
	for door := range seen {
		doors = append(doors, door)
	}
	slices.Sort(doors)
	return doors
}

// garbage is what a confused or hostile program might send.
func garbage() [][]byte {
	random := make([]byte, 4<<10)
	_, _ = rand.Read(random)
	return [][]byte{
		nil,
		random,
		[]byte(strings.Repeat("A", 64<<10)),
		[]byte("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
		[]byte("POST /v1/sealed HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nzz\r\n"),
		[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x00"),
		{0x16, 0x03, 0x01, 0xff, 0xff, 0x01}, // the start of a TLS record that never ends
		[]byte("CONNECT 99999999999999999999\n"),
		append([]byte("CONNECT 5000\n"), random...), // past the handshake, to the enclave
		[]byte("CONNECT 5000\nPOST /v1/sealed HTTP/1.1\r\nHost: x\r\nMrgc-Recipients: ,\r\nContent-Length: 7\r\n\r\n{\"a\":1}"),
		[]byte(`{"token":` + strings.Repeat("[", 10_000)),
	}
}

var _ = Describe("Garbage", func() {
	It("at every port and socket stops nothing, and nobody", func(ctx SpecContext) {
		c := startCluster("--regions", "use1", "--instances", "2", "--engine", "sim")
		before := c.pids()
		doors := c.doors()
		Expect(len(doors)).To(BeNumerically(">=", 18), "%v", doors)
		for _, door := range doors {
			network, address, _ := strings.Cut(door, " ")
			for _, rubbish := range garbage() {
				conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
				Expect(err).NotTo(HaveOccurred(), door)
				Expect(conn.SetDeadline(time.Now().Add(200 * time.Millisecond))).To(Succeed())
				_, _ = conn.Write(rubbish)                               // it may hang up before the end
				_, _ = io.Copy(io.Discard, io.LimitReader(conn, 64<<10)) // and say something, or nothing
				Expect(conn.Close()).To(Succeed())
			}
		}
		Expect(c.pids()).To(Equal(before), "no process was restarted")
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "still there?")
		Expect(status).To(Equal(http.StatusOK), body)
	}, NodeTimeout(2*time.Minute))
})
