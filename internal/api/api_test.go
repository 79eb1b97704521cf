package api_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
)

func TestAPI(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "api")
}

var _ = Describe("An error", func() {
	It("has OpenAI's shape, with null for what it does not name", func() {
		e := api.Errorf(http.StatusNotFound, "model_not_found", "no model %q", "m")
		Expect(e.Body()).To(MatchJSON(`{"error":{"message":"no model \"m\"","type":"invalid_request_error","param":null,"code":"model_not_found"}}`))
	})

	It("is written with its status and Retry-After in whole seconds, rounded up", func() {
		e := api.Errorf(http.StatusServiceUnavailable, "no_instance_ready", "none is ready")
		e.RetryAfter = 1500 * time.Millisecond
		recorder := httptest.NewRecorder()
		e.Write(recorder)
		Expect(recorder.Code).To(Equal(http.StatusServiceUnavailable))
		Expect(recorder.Header().Get("Retry-After")).To(Equal("2"))
		Expect(recorder.Header().Get("Content-Type")).To(Equal("application/json"))
	})

	It("survives being written and read", func() {
		e := api.Errorf(http.StatusBadRequest, "unknown_field", "field %q is not supported", "x")
		e.Param = "x"
		Expect(api.ParseError(e.Status, e.Body())).To(Equal(e))
	})

	DescribeTable("type follows from the status", func(status int, want string) {
		Expect(api.Errorf(status, "c", "m").Type).To(Equal(want))
	},
		Entry(nil, 400, api.TypeInvalidRequest), Entry(nil, 401, api.TypeAuthentication), Entry(nil, 403, api.TypePermission),
		Entry(nil, 404, api.TypeInvalidRequest), Entry(nil, 429, api.TypeRateLimit), Entry(nil, 500, api.TypeServer),
		Entry(nil, 503, api.TypeServer),
	)

	DescribeTable("of another shape shows nothing of the body", func(body string) {
		e := api.ParseError(502, []byte(body))
		Expect(e.Status).To(Equal(502))
		Expect(e.Code).To(Equal("unexpected_response"))
		Expect(e.Message).NotTo(ContainSubstring("secret"))
	},
		Entry("text", "secret"), Entry("other JSON", `{"detail":"secret"}`), Entry("nothing", ""),
		Entry("no message", `{"error":{"code":"secret"}}`),
	)
})
