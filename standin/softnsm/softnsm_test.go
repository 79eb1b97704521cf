//go:build linux

package softnsm_test

import (
	"bufio"
	"context"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// askEnv turns a copy of the test binary into a process that waits for a line
// on its input, asks the module at this address, and prints the document.
const askEnv = "SOFTNSM_TEST_ASK"

func TestMain(m *testing.M) {
	if address := os.Getenv(askEnv); address != "" {
		if err := ask(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func ask(address string) error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	module, err := nsm.Dial(address)
	if err != nil {
		return err
	}
	document, err := module.Attest(context.Background(), nsm.Request{UserData: []byte("claims")})
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(document)
	return err
}

func TestSoftNSM(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "softnsm")
}

var _ = Describe("A software NSM", func() {
	var c *cluster
	BeforeEach(func() {
		before := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before)) })
		c = startCluster()
	})

	It("makes documents that the verifier accepts", func(ctx SpecContext) {
		request := nsm.Request{UserData: []byte("claims"), Nonce: []byte("nonce"), PublicKey: []byte("key")}
		raw, err := c.module().Attest(ctx, request)
		Expect(err).NotTo(HaveOccurred())

		doc, err := attest.Verify(raw, c.policy, attest.Expected{UserData: request.UserData, Nonce: request.Nonce, Region: "us-east-1"}, c.clock.Now())
		Expect(err).NotTo(HaveOccurred())
		Expect(doc.ModuleID).To(MatchRegexp(`^use1-0-enc[0-9a-f]{16}$`))
		Expect(doc.Timestamp).To(BeTemporally("==", c.clock.Now()))
		Expect(doc.PublicKey).To(Equal(request.PublicKey))
		Expect(doc.PCRs).To(HaveLen(16))
		Expect(doc.PCRs[3]).To(Equal(attest.ExtendedPCR([]byte("development"))))
		Expect(doc.PCRs[4]).To(Equal(attest.ExtendedPCR([]byte("use1-0"))))
		Expect(doc.PCRs[5]).To(Equal(attest.HexBytes(make([]byte, 48))))
	})

	It("measures the executable by the rule of enclave images", func() {
		binary, err := os.ReadFile(executable())
		Expect(err).NotTo(HaveOccurred())
		contents := sha512.Sum384(binary)
		pcr0 := sha512.Sum384(append(make([]byte, 48), contents[:]...))
		pcrs, err := softnsm.Measure(executable())
		Expect(err).NotTo(HaveOccurred())
		Expect(pcrs).To(HaveLen(3))
		Expect(pcrs[0]).To(BeEquivalentTo(pcr0[:]))
		Expect(pcrs[1]).NotTo(Equal(pcrs[2]))
	})

	It("gives documents that no one accepts under the AWS root", func(ctx SpecContext) {
		raw, err := c.module().Attest(ctx, nsm.Request{UserData: []byte("claims")})
		Expect(err).NotTo(HaveOccurred())
		c.policy.Roots = []*x509.Certificate{attest.AWSRoot()}
		Expect(c.verify(raw)).To(MatchError(ContainSubstring(softnsm.RootName)))
	})

	It("measures other processes, and tells a changed binary", func(ctx SpecContext) {
		same := startAsker(c, copyExecutable(nil))
		Expect(c.verify(same.document())).To(Succeed())

		changed := startAsker(c, copyExecutable([]byte{0}))
		Expect(c.verify(changed.document())).To(MatchError(ContainSubstring("match no trusted release")))
	})

	It("measures what runs, not what lies at its path now", func(ctx SpecContext) {
		path := copyExecutable([]byte("changed"))
		asker := startAsker(c, path)
		Expect(os.Rename(copyExecutable(nil), path)).To(Succeed())
		Expect(softnsm.Measure(path)).To(Equal(c.policy.Releases[0].PCRs))
		Expect(c.verify(asker.document())).To(MatchError(ContainSubstring("match no trusted release")))
	})

	It("renews its leaf before it expires", func(ctx SpecContext) {
		for range 20 { // ten hours, more than three leaves
			raw, err := c.module().Attest(ctx, nsm.Request{UserData: []byte("claims")})
			Expect(err).NotTo(HaveOccurred())
			Expect(c.verify(raw)).To(Succeed())
			c.clock.Advance(30 * time.Minute)
		}
	})

	DescribeTable("says why it refuses", func(message []byte, code nsm.ErrorCode) {
		Expect(c.exchange(message)).To(MatchError(code))
		Eventually(c.log).Should(gbytes.Say(string(code))) // after the answer
	},
		Entry("what is not an attestation request", []byte("\x6bDescribeNSM"), nsm.InvalidArgument),
		Entry("a field that is too large", slices.Concat(
			[]byte("\xa1\x6bAttestation\xa1\x65nonce\x59\x02\x01"), make([]byte, 513)), nsm.InputTooLarge),
	)

	It("serves many at once", func(ctx SpecContext) {
		var wg sync.WaitGroup
		errs := make([]error, 40)
		for i := range errs {
			wg.Go(func() {
				raw, err := c.module().Attest(ctx, nsm.Request{UserData: []byte("claims")})
				if err == nil {
					err = c.verify(raw)
				}
				errs[i] = err
			})
		}
		wg.Wait()
		Expect(errs).To(HaveEach(BeNil()))
	})

	It("hangs up on who is silent when it stops", func() {
		conn, err := net.Dial("unix", c.path)
		Expect(err).NotTo(HaveOccurred())
		defer conn.Close()
		Expect(c.exchange([]byte{0xa0})).To(MatchError(nsm.InvalidArgument)) // so the silent one was accepted
		c.stop()
		Eventually(c.served).Should(Receive(BeNil()))
		_, err = conn.Read(make([]byte, 1))
		Expect(err).To(MatchError(io.EOF))
	})
})

var _ = Describe("New", func() {
	root, rootErr := softnsm.NewRoot(time.Now())

	DescribeTable("refuses", func(c softnsm.Config, reason string) {
		Expect(rootErr).NotTo(HaveOccurred())
		_, err := softnsm.New(c)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no root", softnsm.Config{Region: "us-east-1"}, "Config.Root"),
		Entry("no region", softnsm.Config{Root: root}, "Config.Region"),
		Entry("a region with a dot", softnsm.Config{Root: root, Region: "a.b"}, "Config.Region"),
	)

	It("names the root for what it is", func() {
		Expect(rootErr).NotTo(HaveOccurred())
		cert, err := attest.ParseRoot(root.PEM())
		Expect(err).NotTo(HaveOccurred())
		Expect(cert.Equal(root.Certificate())).To(BeTrue())
		Expect(cert.Subject.CommonName).To(Equal("MRGC DEVELOPMENT ROOT, NOT AWS"))
	})
})

var _ = Describe("Measure", func() {
	It("names the file that it cannot read", func() {
		_, err := softnsm.Measure("/nonexistent/mrgc-enclave")
		Expect(err).To(MatchError(ContainSubstring("/nonexistent/mrgc-enclave")))
	})
})
