package launch_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent/launch"
)

// This program is the enclave, too: it listens, and ends on SIGTERM unless it is
// told to be stubborn.
func TestMain(m *testing.M) {
	if address := os.Getenv("ENCLAVE_OF_THE_TEST"); address != "" {
		enclave(os.Args[1])
		return
	}
	os.Exit(m.Run())
}

func enclave(address string) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	listener, err := vsock.Listen(address)
	if err != nil {
		panic(err)
	}
	fmt.Println("environment:", strings.Join(os.Environ(), " "))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("here"))
			_ = conn.Close()
		}
	}()
	for range term {
		switch os.Getenv("ENCLAVE_OF_THE_TEST") {
		case "stubborn":
		case "failing":
			os.Exit(3)
		default:
			return
		}
	}
}

func TestLaunch(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parent/launch")
}

var _ = Describe("Enclaves", func() {
	var (
		dir    string
		output *gbytes.Buffer
	)
	BeforeEach(func() {
		var err error
		dir, err = os.MkdirTemp("", "mrgc")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		output = gbytes.NewBuffer()
	})
	open := func(kind string) *launch.Enclaves {
		GinkgoHelper()
		address := "unix:" + filepath.Join(dir, "{place}.vsock") + ":5000"
		e, err := launch.New(launch.Config{Command: []string{os.Args[0], address}, Address: address, Env: []string{"ENCLAVE_OF_THE_TEST=" + kind}, Output: output})
		Expect(err).NotTo(HaveOccurred())
		return e
	}
	start := func(ctx context.Context, e *launch.Enclaves, place int) interface {
		Dial(context.Context) (net.Conn, error)
		Ended() <-chan struct{}
		Stop(context.Context) error
	} {
		GinkgoHelper()
		started, err := e.Start(place)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { _ = started.Stop(ended()) })
		Eventually(ctx, func() error {
			conn, err := started.Dial(ctx)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}).WithTimeout(10 * time.Second).Should(Succeed())
		return started
	}

	It("are two beside each other, each in its place, with no environment but theirs", func(ctx SpecContext) {
		GinkgoT().Setenv("SECRET_OF_THE_PARENT", "x")
		e := open("good")
		first := start(ctx, e, 0)
		second := start(ctx, e, 1)
		Expect(output).To(gbytes.Say("environment: ENCLAVE_OF_THE_TEST=good\n"))
		_, err := e.Start(0)
		Expect(err).To(MatchError(ContainSubstring("there is one in place 0")))
		_, err = e.Start(2)
		Expect(err).To(MatchError(ContainSubstring("want 0 to 1")))

		Expect(first.Stop(ctx)).To(Succeed())
		Expect(first.Ended()).To(BeClosed())
		Expect(first.Stop(ctx)).To(Succeed())
		Expect(second.Ended()).NotTo(BeClosed())
		start(ctx, e, 0)
	})

	It("are killed when they do not end, which is said: what a command has started may be there still", func(ctx SpecContext) {
		stubborn := start(ctx, open("stubborn"), 0)
		Expect(stubborn.Stop(ended())).To(MatchError(ContainSubstring("may still be there")))
		Expect(stubborn.Ended()).To(BeClosed())
		Expect(stubborn.Stop(ctx)).To(Succeed(), "there is nothing any more to be stopped")
	})

	It("may still be there when their command, asked to end, says that it has failed", func(ctx SpecContext) {
		failing := start(ctx, open("failing"), 0)
		Expect(failing.Stop(ctx)).To(MatchError(ContainSubstring("exit status 3")))
		Expect(failing.Ended()).To(BeClosed())
	})

	It("are not started by a program that is not there", func() {
		e, err := launch.New(launch.Config{Command: []string{filepath.Join(dir, "none"), "{place}"}, Address: "vsock://1{place}:5000"})
		Expect(err).NotTo(HaveOccurred())
		for range 2 { // its place stays free
			_, err = e.Start(0)
			Expect(err).To(MatchError(ContainSubstring("no such file")))
		}
	})

	DescribeTable("cannot be configured", func(c launch.Config, because string) {
		_, err := launch.New(c)
		Expect(err).To(MatchError(ContainSubstring(because)))
	},
		Entry("without a command", launch.Config{Address: "vsock://1{place}:5000"}, "no command"),
		Entry("with one address for two", launch.Config{Command: []string{"x", "{place}"}, Address: "vsock://16:5000"}, "in each other's way"),
		Entry("with one command for two", launch.Config{Command: []string{"x"}, Address: "vsock://1{place}:5000"}, "in each other's way"),
		Entry("at no address", launch.Config{Command: []string{"x", "{place}"}, Address: "tcp://1{place}:5000"}, "address"),
	)
})

// ended is a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
