package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/attest"
)

// A tenant trusts releases that it has measured, and sends requests of OpenAI's
// API through an HTTP client that seals them. The host in the URL plays no part:
// requests go to the endpoints.
func Example() {
	releases, err := attest.ParseReleases([]byte(`[{"version": 7, "name": "2026-11", "pcrs": {` +
		`"0": "` + strings.Repeat("01", 48) + `", "1": "` + strings.Repeat("02", 48) + `", "2": "` + strings.Repeat("03", 48) + `"}}]`))
	if err != nil {
		fmt.Println(err)
		return
	}
	sealing, err := client.New(client.Config{
		Endpoints: []string{"https://use1.example.com", "https://usw2.example.com"},
		Policy:    client.Policy{Releases: releases, MinVersion: 7, Regions: []string{"use1", "usw2"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	// An SDK takes the same client, for example openai-go:
	//
	//	openai.NewClient(
	//		option.WithHTTPClient(&http.Client{Transport: sealing}),
	//		option.WithBaseURL("https://use1.example.com/v1"),
	//		option.WithAPIKey(os.Getenv("OPENAI_API_KEY")),
	//	)
	httpClient := &http.Client{Transport: sealing}

	req, err := http.NewRequest(http.MethodPost, "https://use1.example.com/v1/chat/completions",
		strings.NewReader(`{"model": "qwen2.5-0.5b-instruct", "messages": [{"role": "user", "content": "Hello"}]}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	req.Header.Set("Authorization", "Bearer sk-of-another-provider")
	resp, err := httpClient.Do(req) // a key that is none is refused here, nothing is sent
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, err)
	fmt.Println(string(body))
	// Output:
	// 401 <nil>
	// {"error":{"message":"not an MRGC API key: it has the form \"mrgc-\u003ctenant\u003e-\u003c43 characters\u003e\"","type":"authentication_error","param":null,"code":"invalid_api_key"}}
}

// SDKs of other languages are pointed at a handler on loopback.
func ExampleClient_Handler() {
	sealing, err := client.New(client.Config{
		Endpoints: []string{"https://use1.example.com"},
		Policy:    client.Policy{Releases: []attest.Release{{Version: 7, Name: "2026-11"}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := httptest.NewServer(sealing.Handler()) // listens on loopback
	defer server.Close()

	resp, err := http.Post(server.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 401 Unauthorized
}
