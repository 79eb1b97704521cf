package main_test

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestMRGCEnclave(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "cmd/mrgc-enclave")
}

// trusted is all that the enclave's binary may be made of beside the standard
// library, by import path. All of it is measured, can read every tenant's
// requests, and must be read again with each release: a longer list is a weaker
// promise. So each entry says why it is here.
var trusted = map[string]string{
	"github.com/mrgc/mrgc/cmd/mrgc-enclave":    "the program",
	"github.com/mrgc/mrgc/enclave":             "the service",
	"github.com/mrgc/mrgc/internal/api":        "names and errors that the tenant sees",
	"github.com/mrgc/mrgc/internal/awscall":    "signs what AWS is asked, and trusts Amazon's roots",
	"github.com/mrgc/mrgc/internal/cms":        "opens what KMS releases to the enclave",
	"github.com/mrgc/mrgc/internal/attest":     "tells on which host the engine runs",
	"github.com/mrgc/mrgc/internal/credential": "tells the tenant",
	"github.com/mrgc/mrgc/internal/dsse":       "verifies what the operator has signed",
	"github.com/mrgc/mrgc/internal/tenant":     "whom the operator has signed, and what they may do",
	"github.com/mrgc/mrgc/internal/fleetkey":   "the seeds of fleet recipients, and what these have run",
	"github.com/mrgc/mrgc/internal/identity":   "mutual TLS to the guard",
	"github.com/mrgc/mrgc/internal/kms":        "has KMS release tenants' data keys, and make and release a fleet's seeds",
	"github.com/mrgc/mrgc/internal/lockdown":   "no core dumps",
	"github.com/mrgc/mrgc/internal/nsm":        "asks for attestation documents",
	"github.com/mrgc/mrgc/internal/seal":       "the protocol",
	"github.com/mrgc/mrgc/internal/size":       "measures a request as the client does",
	"github.com/mrgc/mrgc/internal/vsock":      "the way in and out",

	"github.com/fxamacker/cbor/v2": "claims and the security module's messages",
	"github.com/x448/float16":      "cbor's half-precision numbers",
	"github.com/veraison/go-cose":  "verifies the signature of a host's document",
	"github.com/mdlayher/vsock":    "AF_VSOCK as net.Conn",
	"github.com/mdlayher/socket":   "what vsock is made of",
	"golang.org/x/net/bpf":         "a type in socket's interface",
	"golang.org/x/sync/errgroup":   "used by socket",
	"golang.org/x/sys/unix":        "system calls",
}

// banned is what is near at hand and must stay out, with what is below it and
// the reason. Of the standard library, this is all that is banned.
var banned = map[string]string{
	"github.com/mrgc/mrgc/standin":        "a stand-in inside the enclave would be the real thing",
	"github.com/mrgc/mrgc/internal/fleet": "the enclave does not know the fleet",
	"github.com/aws":                      "60 packages for four requests that a hash and an HMAC sign",
	"github.com/spf13/cobra":              "flags are enough",
	"github.com/prometheus":               "whatever counts requests can tell tenants apart",
	"google.golang.org/grpc":              "a large parser of what the host sends",
	"go.yaml.in/yaml":                     "configuration is flags and JSON",
	"modernc.org":                         "the enclave stores nothing",
	"database/sql":                        "the enclave stores nothing",
	"os/exec":                             "the enclave starts nothing",
	"net/http/pprof":                      "would serve the enclave's memory",
	"expvar":                              "would serve the enclave's state",
	"net/rpc":                             "the one way in is the sealed request",
	"plugin":                              "code that is loaded later is not measured",
}

// objection says why a package may not be in the binary; empty: it may.
func objection(path string, standard bool) string {
	for root, because := range banned {
		if path == root || strings.HasPrefix(path, root+"/") {
			return because
		}
	}
	if _, ok := trusted[path]; ok || standard {
		return ""
	}
	return "it is new, and every package of the enclave is measured and can read plaintext: " +
		"do without it, or add it to this test's list with the reason"
}

// imports are the packages that the binary is made of, built as for the enclave:
// for Linux, without C. Each is told to be the standard library's or not.
func imports() map[string]bool {
	GinkgoHelper()
	list := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}} {{.Standard}}", ".")
	list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	list.Stderr = GinkgoWriter
	out, err := list.Output()
	Expect(err).NotTo(HaveOccurred())
	standard := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		path, is, _ := strings.Cut(strings.TrimSpace(line), " ")
		standard[path] = is == "true"
	}
	return standard
}

var _ = Describe("The enclave's binary", func() {
	It("is made of packages that are trusted, and of all of those", func() {
		found := imports()
		Expect(found).To(HaveKey("crypto/hpke"), "this is not the list of the enclave's imports")
		for path, standard := range found {
			Expect(objection(path, standard)).To(BeEmpty(), "%s must stay out of the enclave", path)
		}
		Expect(slices.Collect(maps.Keys(found))).To(ContainElements(slices.Collect(maps.Keys(trusted))),
			"take off the list what the binary does without")
	})

	DescribeTable("would not pass this test with",
		func(path string, standard bool) { Expect(objection(path, standard)).NotTo(BeEmpty()) },
		Entry(nil, "github.com/mrgc/mrgc/standin/softnsm", false),
		Entry(nil, "github.com/mrgc/mrgc/internal/attestation", false),
		Entry(nil, "github.com/mrgc/mrgc/internal/sealer", false),
		Entry(nil, "google.golang.org/grpc/codes", false),
		Entry(nil, "golang.org/x/net/http2", false),
		Entry(nil, "github.com/aws/aws-sdk-go-v2/service/kms", false),
		Entry(nil, "net/http/pprof", true),
	)
})
