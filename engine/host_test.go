package engine_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/api"
)

var _ = Describe("A guard whose host is attested", func() {
	nonce := bytes.Repeat([]byte{7}, api.HostNonceBytes)
	attested := func(attest func(context.Context, []byte) ([]byte, error)) *guarded {
		GinkgoHelper()
		return newGuardedBy(func(http.ResponseWriter, *http.Request) { defer GinkgoRecover(); Fail("the engine was asked") }, engine.GuardConfig{AttestHost: attest})
	}
	ask := func(ctx context.Context, g *guarded, id string, nonce []byte) (status int, body string) {
		GinkgoHelper()
		resp, err := g.do(ctx, id, 1, http.MethodPost, api.PathHostAttestation, bytes.NewReader(nonce))
		Expect(err).NotTo(HaveOccurred())
		content, err := io.ReadAll(resp.Body)
		Expect(err).NotTo(HaveOccurred())
		return resp.StatusCode, string(content)
	}

	It("gives the enclave a document with its nonce, and the parent none", func(ctx SpecContext) {
		g := attested(func(_ context.Context, nonce []byte) ([]byte, error) {
			return append([]byte("document of "), nonce...), nil
		})
		status, body := ask(ctx, g, enclaveID, nonce)
		Expect(status).To(Equal(http.StatusOK))
		Expect(body).To(Equal("document of " + string(nonce)))
		status, _ = ask(ctx, g, parentID, nonce)
		Expect(status).To(Equal(http.StatusForbidden))
	})

	DescribeTable("refuses a nonce of another size", func(ctx SpecContext, size int) {
		g := attested(func(context.Context, []byte) ([]byte, error) {
			defer GinkgoRecover()
			Fail("the TPM was asked")
			return nil, nil
		})
		status, body := ask(ctx, g, enclaveID, make([]byte, size))
		Expect(status).To(Equal(http.StatusBadRequest))
		Expect(body).To(ContainSubstring("invalid_nonce"))
	}, Entry("none", 0), Entry("shorter", api.HostNonceBytes-1), Entry("longer", api.HostNonceBytes+1))

	It("says that its TPM fails, and not how", func(ctx SpecContext) {
		g := attested(func(context.Context, []byte) ([]byte, error) { return nil, errors.New("chip 4711 on fire") })
		status, body := ask(ctx, g, enclaveID, nonce)
		Expect(status).To(Equal(http.StatusServiceUnavailable))
		Expect(body).To(And(ContainSubstring("host_attestation_failed"), Not(ContainSubstring("4711"))))
		Eventually(g.logs.String).Should(ContainSubstring("4711"))
	})

	It("is told apart from one whose host is not", func(ctx SpecContext) {
		status, body := ask(ctx, attested(nil), enclaveID, nonce)
		Expect(status).To(Equal(http.StatusNotFound))
		Expect(body).To(ContainSubstring("--nitro-tpm-attest"))
	})
})

var _ = Describe("AWS's nitro-tpm-attest", func() {
	// tool is a script in its place.
	tool := func(script string) []string {
		GinkgoHelper()
		path := filepath.Join(GinkgoT().TempDir(), "nitro-tpm-attest")
		Expect(os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700)).To(Succeed())
		return []string{path, "--first"}
	}

	It("is given files of both, which are gone afterwards", func(ctx SpecContext) {
		out, err := engine.NitroTPM(ctx, tool(`echo "$1 $2 $4"; cat "$3" "$5"; echo; echo "$3"`), []byte("data,"), []byte("nonce"))
		Expect(err).NotTo(HaveOccurred())
		lines := strings.Split(string(out), "\n")
		Expect(lines[:2]).To(HaveExactElements("--first --user-data --nonce", "data,nonce"))
		Expect(lines[2]).NotTo(BeAnExistingFile())
	})

	DescribeTable("fails", func(ctx SpecContext, script, reason string) {
		_, err := engine.NitroTPM(ctx, tool(script), nil, nil)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("by its exit status, with what it says", "echo no device >&2; exit 3", `exit status 3: "no device"`),
		Entry("by giving nothing", "true", "gave 0 bytes"),
		Entry("by giving too much", "head -c 20000 /dev/zero", "gave 20000 bytes"),
	)

	It("fails when it is not there", func(ctx SpecContext) {
		_, err := engine.NitroTPM(ctx, []string{"/nowhere/nitro-tpm-attest"}, nil, nil)
		Expect(err).To(MatchError(ContainSubstring("no such file")))
	})
})
