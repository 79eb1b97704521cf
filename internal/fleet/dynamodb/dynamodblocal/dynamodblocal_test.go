package dynamodblocal_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
)

// The test binary run with starterEnv set starts a server, prints its port and
// waits to be killed.
const starterEnv = "MRGC_TEST_DYNAMODB_LOCAL"

func TestMain(m *testing.M) {
	if os.Getenv(starterEnv) == "" {
		os.Exit(m.Run())
	}
	server, err := dynamodblocal.Start(context.Background(), dynamodblocal.Config{Log: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(server.Port)
	select {}
}

func TestDynamoDBLocal(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/fleet/dynamodb/dynamodblocal")
}

var _ = Describe("DynamoDB Local", func() {
	BeforeEach(func() {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		good := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines, "5s").ShouldNot(gleak.HaveLeaked(good)) })
	})

	It("listens on loopback alone, until it is killed", func(ctx SpecContext) {
		server, err := dynamodblocal.Start(ctx, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Kill)
		Expect(dial(server.Port, "127.0.0.1")).To(Succeed())
		addresses, err := net.InterfaceAddrs()
		Expect(err).NotTo(HaveOccurred())
		for _, address := range addresses {
			if ip := address.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() {
				Expect(dial(server.Port, ip.String())).To(MatchError(ContainSubstring("refused")))
			}
		}
		server.Kill()
		server.Kill()
		Expect(dial(server.Port, "127.0.0.1")).To(MatchError(ContainSubstring("refused")))
	}, SpecTimeout(time.Minute))

	It("ends with who started it, even when that is killed", func(SpecContext) {
		self, err := os.Executable()
		Expect(err).NotTo(HaveOccurred())
		starter := exec.Command(self)
		starter.Env = append(os.Environ(), starterEnv+"=1")
		session, err := gexec.Start(starter, nil, GinkgoWriter)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { session.Kill().Wait() })
		var port int
		Eventually(func() (err error) {
			_, err = fmt.Sscanln(string(session.Out.Contents()), &port)
			return err
		}, "30s").Should(Succeed())
		Expect(dial(port, "127.0.0.1")).To(Succeed())
		Expect(starter.Process.Kill()).To(Succeed())
		Eventually(dial, "10s").WithArguments(port, "127.0.0.1").Should(MatchError(ContainSubstring("refused")))
	}, SpecTimeout(time.Minute))

	It("says that it cannot listen", func(ctx SpecContext) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(taken.Close)
		_, err = dynamodblocal.Start(ctx, dynamodblocal.Config{Port: taken.Addr().(*net.TCPAddr).Port, Log: GinkgoWriter})
		Expect(err).To(MatchError(ContainSubstring("ended before it listened")))
	}, SpecTimeout(time.Minute))

	It("is waited for no longer than the context lasts", func(ctx SpecContext) {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := dynamodblocal.Start(short, dynamodblocal.Config{Log: GinkgoWriter})
		Expect(err).To(MatchError(context.DeadlineExceeded))
	}, SpecTimeout(time.Minute))
})

func dial(port int, host string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 5*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}
