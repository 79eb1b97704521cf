package main_test

import (
	"crypto/ed25519"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/internal/dsse"
)

var _ = Describe("The enclave's process", func() {
	It("ends soon after it is told to, whatever it waits for", func(ctx SpecContext) {
		program, err := gexec.Build("github.com/mrgc/mrgc/cmd/mrgc-enclave")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(gexec.CleanupBuildArtifacts)
		dir, err := os.MkdirTemp("", "mrgc") // a socket's path has to be short
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		_, signing, err := ed25519.GenerateKey(nil)
		Expect(err).NotTo(HaveOccurred())
		_, verification, err := dsse.MarshalKey(signing)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(filepath.Join(dir, "tenants.pub"), verification, 0o600)).To(Succeed())
		authority, err := net.Listen("unix", filepath.Join(dir, "ca.sock")) // takes connections, and answers none
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(authority.Close)

		cmd := exec.Command(program, "-nsm", "unix:"+filepath.Join(dir, "nsm"), "-identity", "unix:"+filepath.Join(dir, "ca.sock"),
			"-tenants-key", filepath.Join(dir, "tenants.pub"), "-mode", "process", "-model", "m", "-listen", "unix:"+filepath.Join(dir, "e.sock"))
		cmd.Env = append(os.Environ(), "MRGC_IDENTITY_TOKEN=token")
		session, err := gexec.Start(cmd, GinkgoWriter, GinkgoWriter)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { session.Kill().Wait() })
		conn, err := authority.Accept()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(conn.Close)

		Expect(cmd.Process.Signal(syscall.SIGTERM)).To(Succeed())
		Eventually(ctx, session).Should(gexec.Exit(1))
		Expect(session.Err).To(gbytes.Say("told to end, and did not within 3s"))
	}, NodeTimeout(time.Minute))
})
