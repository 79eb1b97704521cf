package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// tenantFiles are what a tenant has: releases, and a development root.
func tenantFiles() (releases, root string) {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	releases, root = filepath.Join(dir, "releases.json"), filepath.Join(dir, "root.pem")
	pcrs := attest.PCRs{}
	for i := range 3 {
		pcrs[i] = attest.ExtendedPCR([]byte{byte(i)})
	}
	content, err := json.Marshal([]attest.Release{{Version: 1, Name: "test", PCRs: pcrs}})
	Expect(err).NotTo(HaveOccurred())
	Expect(os.WriteFile(releases, content, 0o600)).To(Succeed())
	made, err := softnsm.NewRoot(time.Now())
	Expect(err).NotTo(HaveOccurred())
	Expect(os.WriteFile(root, made.PEM(), 0o600)).To(Succeed())
	return releases, root
}

// connectProcess is mrgc connect with the flags that it must have, and more.
func connectProcess(ctx context.Context, more ...string) *exec.Cmd {
	GinkgoHelper()
	releases, _ := tenantFiles()
	return process(ctx, append([]string{"connect", "--endpoint", "https://127.0.0.1:1", "--releases", releases, "--listen", "127.0.0.1:0"}, more...)...)
}

var _ = Describe("mrgc connect", func() {
	DescribeTable("does not serve", func(ctx SpecContext, reason string, more ...string) {
		output, err := connectProcess(ctx, more...).CombinedOutput()
		var exit *exec.ExitError
		Expect(errors.As(err, &exit)).To(BeTrue(), "%v", err)
		Expect(exit.ExitCode()).To(Equal(1))
		Expect(string(output)).To(HavePrefix("mrgc: "))
		Expect(string(output)).To(ContainSubstring(reason))
	},
		Entry("every interface", "not a loopback address", "--listen", "0.0.0.0:0"),
		Entry("every interface, by default", "not a loopback address", "--listen", ":0"),
		Entry("another machine's address", "not a loopback address", "--listen", "192.0.2.1:0"),
		Entry("what is no address", "--listen", "--listen", "8400"),
		Entry("in clear", "want https://host", "--endpoint", "http://127.0.0.1:1"),
		Entry("without releases", "--releases", "--releases", "/nonexistent/releases.json"),
		Entry("releases that are none", "--releases "+example, "--releases", example),
		Entry("without roots", "--ca", "--ca", "/nonexistent/ca.pem"),
		Entry("roots that are none", "no certificate in it", "--ca", example),
		Entry("without a development root", "--trust-development-root", "--trust-development-root", "/nonexistent/root.pem"),
		Entry("a development root that is none", "no certificate in it", "--trust-development-root", example),
		Entry("a certificate without its key", "client-key", "--client-cert", example),
		Entry("without a certificate", "--client-cert", "--client-cert", "/nonexistent/tls.crt", "--client-key", "/nonexistent/tls.key"),
		Entry("a certificate that is none", "--client-cert", "--client-cert", example, "--client-key", example),
		Entry("with releases that a key should verify, and none is there", "--releases-key", "--releases-key", "/nonexistent/releases.pub"),
		Entry("with a KMS key by its alias", "want arn:aws:kms:", "--kms-key", "alias/tenant"),
		Entry("with a KMS key where no cluster is", "where no cluster is", "--kms-key", "arn:aws:kms:eu-west-1:111122223333:key/1234"),
		Entry("with receipts where a file is", "--receipts: mkdir "+example, "--receipts", example),
		Entry("with more recipients than there can be", "5 recipients", "--recipients", "5"),
	)

	It("serves on loopback until it is stopped, warns of a development root, and makes a place for receipts that nobody else can read", func(ctx SpecContext) {
		_, root := tenantFiles()
		log := gbytes.NewBuffer()
		receipts := filepath.Join(GinkgoT().TempDir(), "not", "there")
		cmd := connectProcess(ctx, "--trust-development-root", root, "--receipts", receipts)
		cmd.Stderr = log
		Expect(cmd.Start()).To(Succeed())
		DeferCleanup(func() { _ = cmd.Process.Kill() }) // no effect on one that was waited for
		Eventually(log).WithTimeout(10 * time.Second).Should(gbytes.Say("TRUSTING A DEVELOPMENT ROOT.*" + softnsm.RootName))
		Eventually(log).Should(gbytes.Say(`base_url=http://127\.0\.0\.1:\d+/v1`))
		made, err := os.Stat(receipts)
		Expect(err).NotTo(HaveOccurred())
		Expect(made.Mode()).To(Equal(os.ModeDir | 0o700))
		base := regexp.MustCompile(`base_url=(\S+)`).FindSubmatch(log.Contents())[1]
		resp, err := http.Get(string(base) + "/models")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp.Body.Close()).To(Succeed())
		Expect(resp.StatusCode).To(Equal(http.StatusUnauthorized)) // no API key
		Expect(cmd.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Expect(cmd.Wait()).To(Succeed())
	})
})
