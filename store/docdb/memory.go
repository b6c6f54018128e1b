package docdb

import (
	"context"
	"net/url"
	"sync"

	"gocloud.dev/docstore"
	"gocloud.dev/docstore/memdocstore"
)

// Memory returns a driver of collections in memory, mem://collection/Name, which
// last as long as it does: keepers with the same driver share them. They are for
// trying things out and for tests.
func Memory() Driver {
	var (
		mu     sync.Mutex
		opener memdocstore.URLOpener // hands out one collection per name until that is closed
	)
	return Driver{
		Scheme: "mem",
		Open: func(ctx context.Context, u *url.URL, _ string) (*docstore.Collection, func() error, error) {
			mu.Lock()
			defer mu.Unlock()
			coll, err := opener.OpenCollectionURL(ctx, u)
			return coll, func() error { return nil }, err
		},
	}
}
