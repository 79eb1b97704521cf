package cluster_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/bench/cluster"
)

// TestNetwork runs once more, in namespaces of its own.
func TestNetwork(t *testing.T) {
	g := NewWithT(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces take iproute2")
	}
	if again, err := cluster.RunInOwnNetwork("-test.run=^TestNetwork$"); again {
		if errors.Is(err, unix.EPERM) {
			t.Skip("network namespaces take root")
		}
		g.Expect(err).NotTo(HaveOccurred())
		return
	}
	n, err := cluster.NewNetwork("use1", "use2", "usw2")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(n.Arguments()).To(HaveExactElements(
		"--region-network", "use1=use1@127.1.0.1", "--region-network", "use2=use2@127.2.0.1", "--region-network", "usw2=usw2@127.3.0.1"))

	address := map[string]string{"": "127.0.0.1", "use1": "127.1.0.1", "use2": "127.2.0.1", "usw2": "127.3.0.1"}
	at := map[string]string{}
	for region, host := range address {
		var l net.Listener
		in(g, region, func() { l, err = net.Listen("tcp", host+":0") })
		g.Expect(err).NotTo(HaveOccurred())
		defer l.Close()
		at[region] = l.Addr().String()
	}
	reaches := func(from, to string) error {
		var err error
		in(g, from, func() {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", at[to], 300*time.Millisecond); err == nil {
				err = conn.Close()
			}
		})
		return err
	}
	everyone := func(cut ...string) {
		for from := range address {
			for to := range address {
				isCut := len(cut) == 2 && from != to && (from == cut[0] || from == cut[1]) && (to == cut[0] || to == cut[1])
				if err := reaches(from, to); isCut {
					var timeout net.Error
					g.Expect(errors.As(err, &timeout) && timeout.Timeout()).To(BeTrue(), "%q to %q: %v", from, to, err)
				} else {
					g.Expect(err).NotTo(HaveOccurred(), "%q to %q", from, to)
				}
			}
		}
	}
	everyone()
	g.Expect(n.Cut("use1", "usw2")).To(Succeed())
	everyone("use1", "usw2")
	g.Expect(n.Heal("use1", "usw2")).To(Succeed())
	everyone()
	g.Expect(n.Heal("use1", "usw2")).NotTo(Succeed(), "it is not cut")
}

// in has a socket made in a region's namespace, by a thread that ends with that.
func in(g *WithT, region string, do func()) {
	if region == "" {
		do()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in another namespace
		file, err := os.Open("/run/netns/" + region)
		if err == nil {
			defer file.Close()
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	g.Expect(<-done).To(Succeed())
}
