// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
)

// Unanswered tells an API server that cannot answer from one that says no, and from
// errors that have nothing to do with it.
func Unanswered(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		// etcd's limits of an object come as internal errors.
		text, code := err.Error(), status.Status().Code
		tooLarge := strings.Contains(text, "too large") || strings.Contains(text, "larger than max")
		return code == http.StatusTooManyRequests || code >= 500 && !tooLarge
	}
	var request *url.Error
	return errors.As(err, &request) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

// unansweredPause is how long an API server that does not answer is left alone.
const unansweredPause = 2 * time.Second

// AskAgain returns nil, after a pause, if err says that the API server did not answer:
// for whoever waits anyway. When ctx ends, the error is its cause.
func AskAgain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !Unanswered(err) {
		return err
	}
	return pause.For(ctx, unansweredPause)
}
